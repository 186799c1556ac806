"""One work on its way through a gang, as seen from whoever started it.

Everything a session waits for is an answer of a member: of its run, of the question for reports, of a ping. `_advance`
waits for the next one of all of them, so that the death of any member is seen at once, whatever rank 0 is doing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RaySystemError, RayTaskError

from cluster.member import Place, Pulse
from jobs.errors import JobFailed, ThresherError, WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from cluster.workers import Work

_PULSE_S = 1.0
"""Between two rounds of pings; also the longest single wait, so that an interruption by the user is seen."""
_REPORTS_WAIT_S = 10.0
"""How long a member holds a question for reports before it answers that there are none."""
_OWN_SETTLE_S = 0.5
_FOREIGN_SETTLE_S = 3.0
"""How long a failure waits for the other members: when a process dies, its peers fail at once in their collectives,
often before Ray has noticed the death itself, and it is the death that must be reported."""


@dataclass(frozen=True)
class Peer:
    """A member, by its rank."""

    rank: int
    handle: "ActorHandle"
    place: Place

    def lost(self, cause: str) -> WorkerLost:
        return WorkerLost(
            f"worker {self.rank} on node {self.place.node_ip} (process {self.place.pid}) was lost: {cause}"
        )


def describe(error: RayError) -> str:
    """What happened, out of Ray's message: its last line, without guesses; the lines before it are identifiers."""
    if isinstance(error, OutOfMemoryError):
        return "out of memory: Ray killed it, as its node had almost none left"  # the message ends in advice
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].partition(" Some common causes include")[0]


class GangSession:
    """The Session of a Gang; see cluster.workers.Session."""

    def __init__(
        self,
        peers: Sequence[Peer],
        number: int,
        work: "Work",
        request: Any,
        *,
        silence_timeout_s: float,
        stall_timeout_s: float,
        gather_s: float = 0.0,
        abandon: Callable[[], None],
    ) -> None:
        self._peers = peers
        self._number = number
        self._silence_timeout_s = silence_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._gather_s = gather_s
        self._abandon = abandon
        self._runs: dict[ObjectRef, Peer] = {peer.handle.run.remote(number, work, request): peer for peer in peers}
        self._question: ObjectRef | None = None
        self._drained = False
        self._pings: dict[ObjectRef, Peer] = {}
        self._pinged_at = time.monotonic()
        self._pulses: dict[int, Pulse] = {}
        self._lost: list[Peer] = []
        self._reports: list[dict[str, Any]] = []
        self._result: Any = None
        self._errors: list[ThresherError] = []
        self._first_error_at = 0.0
        self._failure: ThresherError | None = None

    # --- the protocol ------------------------------------------------------------------------------------------

    def next(self, timeout_s: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while not self._reports and not self._over:
            self._advance(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                break
        if not self._reports:
            self._raise_failure()
        reports, self._reports = self._reports, []
        return reports

    def done(self) -> bool:
        ended = self.ended()
        if self._reports:
            return False
        self._raise_failure()
        return ended

    def result(self, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        while not self._over:
            self._advance(deadline - time.monotonic())
            if time.monotonic() >= deadline and not self._over:
                raise TimeoutError(f"the work has not ended within {timeout_s:g} s")
        self._raise_failure()
        return self._result

    def ask_stop(self) -> None:
        for peer in self._peers:
            peer.handle.request_stop.remote(self._number)

    def stop(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        self.ask_stop()
        while not self._over and time.monotonic() < deadline:
            self._advance(deadline - time.monotonic())
        # One member may have failed while others are still at it.
        if not self.idle(deadline - time.monotonic()):
            if self._failure is None:
                self._failure = WorkerLost(f"killed: it did not stop within the {grace_s:g} s that it was given")
            self._abandon()

    # --- for the gang ------------------------------------------------------------------------------------------

    @property
    def lost(self) -> list[Peer]:
        """Members that died, went silent or got stuck."""
        return list(self._lost)

    @property
    def busy(self) -> list[Peer]:
        """Members whose work has not ended."""
        return list(self._runs.values())

    def ended(self) -> bool:
        """Whether the outcome is known, good or bad. After a failure, some members may still be at work."""
        if not self._over:
            self._advance(0.0)
        return self._over

    def idle(self, timeout_s: float) -> bool:
        """Whether every member is alive and has nothing to do; waits for that, at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._runs and not self._lost:
            self._advance(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                break
        return not self._runs and not self._lost

    def settle(self, timeout_s: float) -> None:
        """Waits, at most `timeout_s`, until the members that are not lost have nothing to do."""
        deadline = time.monotonic() + timeout_s
        while any(peer not in self._lost for peer in self._runs.values()) and time.monotonic() < deadline:
            self._advance(deadline - time.monotonic())

    # --- inside ------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._failure is not None or (not self._runs and self._drained and not self._errors)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _advance(self, timeout_s: float) -> None:
        """Waits for the next answer of any member, at most `timeout_s`, and books all that are there."""
        now = time.monotonic()
        if not self._pings and now - self._pinged_at >= _PULSE_S:
            self._pings = {peer.handle.ping.remote(): peer for peer in self._peers}
            self._pinged_at = now
        if self._question is None and not self._drained:
            self._question = self._peers[0].handle.take_reports.remote(self._number, _REPORTS_WAIT_S, self._gather_s)
        awaited = [*self._runs, *self._pings, *([self._question] if self._question is not None else [])]
        ready, _ = ray.wait(awaited, timeout=max(0.0, min(timeout_s, _PULSE_S)))
        if ready:
            ready, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        for answer in ready:
            self._book(answer)
        if self._pings and time.monotonic() - self._pinged_at > self._silence_timeout_s:
            for peer in self._pings.values():
                self._lose(peer, f"it has not answered for {self._silence_timeout_s:g} s")
        self._look_for_stuck()
        self._judge()

    def _look_for_stuck(self) -> None:
        """Where one is stuck, all wait for it sooner or later: it is the one that has come least far."""
        if self._pings or self._errors:
            return  # what some have answered and others not yet can't be compared; after a failure all stand still
        running = {peer.rank: peer for peer in self._runs.values()}
        pulses = {rank: pulse for rank, pulse in self._pulses.items() if rank in running and pulse.beats}
        if any(pulse.age_s > self._stall_timeout_s for pulse in pulses.values()):
            least = min(pulse.beats for pulse in pulses.values())
            for rank, pulse in pulses.items():
                if pulse.beats == least:
                    self._lose(running[rank], f"its work has made no progress for {self._stall_timeout_s:g} s")

    def _lose(self, peer: Peer, cause: str) -> None:
        if peer not in self._lost:
            self._lost.append(peer)
            self._add_error(peer.lost(cause))

    def _book(self, answer: "ObjectRef") -> None:
        if answer == self._question:
            self._question = None
            reports, self._drained = self._value(answer, self._peers[0], otherwise=([], True))
            self._reports += reports
        elif answer in self._runs:
            peer = self._runs.pop(answer)
            value = self._value(answer, peer)
            if peer.rank == 0:
                self._result = value
        else:
            peer = self._pings.pop(answer)
            pulse = self._value(answer, peer)
            if pulse is not None:
                self._pulses[peer.rank] = pulse

    def _value(self, answer: "ObjectRef", peer: Peer, otherwise: Any = None) -> Any:
        try:
            return ray.get(answer)
        except RayTaskError as error:
            # Members let only our own errors out.
            cause = error.cause
            self._add_error(cause if isinstance(cause, ThresherError) else JobFailed(str(error)))
        except RaySystemError as error:
            self._add_error(JobFailed(f"the answer of worker {peer.rank} cannot be read: {describe(error)}"))
        except RayError as error:
            self._lose(peer, describe(error))
        return otherwise

    def _add_error(self, error: ThresherError) -> None:
        if not self._errors:
            self._first_error_at = time.monotonic()
        self._errors.append(error)

    def _judge(self) -> None:
        """Decides which error is the failure: the first loss, else the first of our own, else the first."""
        if self._failure is not None or not self._errors:
            return
        losses = [error for error in self._errors if isinstance(error, WorkerLost)]
        own = [error for error in self._errors if type(error) is not JobFailed]
        busy = self._runs or not self._drained
        settled_at = self._first_error_at + (_OWN_SETTLE_S if own else _FOREIGN_SETTLE_S)
        if losses or not busy or time.monotonic() >= settled_at:
            self._failure = (losses or own or self._errors)[0]
