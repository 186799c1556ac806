"""When a request is sent again: only when that cannot do a thing twice, and not for ever."""

import random
from dataclasses import dataclass

import httpx

from orchestrator.client.errors import AWAY

RETRIED_STATUSES = (429, *AWAY)


@dataclass(frozen=True)
class Retries:
    """Pauses double from `first_s`, with jitter, up to `longest_s`; a Retry-After of the service is obeyed.

    `total_s` bounds the sum of the pauses, not the time that the service takes to answer.
    """

    tries: int = 6
    first_s: float = 0.2
    longest_s: float = 5.0
    total_s: float = 30.0

    def pause_s(self, failures: int, spent_s: float, response: httpx.Response | None = None) -> float | None:
        """How long to wait after so many failures; None: give up."""
        if failures >= self.tries:
            return None
        pause: float = min(self.longest_s, self.first_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        if response is not None:
            pause = max(pause, retry_after_s(response))
        return pause if spent_s + pause <= self.total_s else None


def retry_after_s(response: httpx.Response) -> float:
    """Seconds of the header Retry-After; 0 without one that is a number."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0
