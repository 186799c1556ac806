"""How much one caller may ask for: a bucket of requests that fills up again, and a number of open streams."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.service.answers import Refusal

_KNOWN = 10_000
"""Callers that are remembered; who was longest silent is forgotten first, and has a full bucket then."""


class Buckets:
    """A token bucket for each caller.

    >>> clock = iter([0.0, 0.0, 0.0, 1.0])
    >>> buckets = Buckets(rate=1, burst=2, clock=lambda: next(clock))
    >>> [buckets.wait_s("a") for _ in range(4)]
    [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, cost: float = 1.0) -> float:
        """Takes from the caller's bucket; how long it must wait if there is not enough, and then nothing is taken."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._clock()
            level, seen = self._levels.pop(caller, (float(self._burst), now))
            level = min(float(self._burst), level + (now - seen) * self._rate)
            short = cost - level
            self._levels[caller] = (level if short > 0 else level - cost, now)
            if len(self._levels) > _KNOWN:
                self._levels.popitem(last=False)
        return max(0.0, short / self._rate)

    def take(self, caller: str) -> None:
        """Raises Refusal (429) with the seconds to wait."""
        if wait := self.wait_s(caller):
            raise too_many(wait)


class Streams:
    """How many logs and events each caller follows."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    @property
    def total(self) -> int:
        with self._lock:
            return sum(self._open.values())

    def enter(self, caller: str) -> None:
        """Raises Refusal (429) if the caller follows as many as it may."""
        with self._lock:
            if self._open.get(caller, 0) >= self._most:
                raise too_many(5.0, f"no more than {self._most} streams at a time")
            self._open[caller] = self._open.get(caller, 0) + 1

    def leave(self, caller: str) -> None:
        with self._lock:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.leave(caller)


def too_many(wait_s: float, message: str = "too many requests") -> Refusal:
    """The answer that asks for patience."""
    seconds = max(1, int(wait_s) + (wait_s > int(wait_s)))
    return Refusal(429, message, headers={"Retry-After": str(seconds)})
