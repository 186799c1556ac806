"""Whether an attempt that ended without success is followed by another one, and when."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_FIRST_MS = 60_000
_LONGEST_MS = 3_600_000
_JITTER = 0.1


class Cause(StrEnum):
    """Why an attempt ended. Only `user_code` counts against `retry.max_failures`."""

    user_code = "the job's own code failed"
    infrastructure = "a node, a worker or the cluster was lost"
    preempted = "another job took its place"

    @property
    def waits(self) -> bool:
        """Who was evicted did nothing wrong: it waits in its old place, not for a backoff."""
        return self is not Cause.preempted


@dataclass(frozen=True)
class Retry:
    not_before_ms: int


@dataclass(frozen=True)
class GiveUp:
    """The job failed: `causes` of all its attempts."""

    causes: tuple[Cause, ...]


def backoff_ms(job: str, failures: int) -> int:
    """60 s after the first failure, then twice as long each time, up to an hour, with up to a tenth more.

    The jitter keeps jobs that failed together from coming back together. It is a function of job and number, so that
    whoever computes it again, after a crash, gets the same.

    >>> [round(backoff_ms("17", n) / 60_000) for n in (1, 2, 3, 20)]
    [1, 2, 4, 60]
    """
    if failures < 1:
        raise ValueError(f"there is no backoff before a failure (got {failures})")
    longest = min(_LONGEST_MS, _FIRST_MS << min(failures - 1, 16))
    digest = hashlib.blake2b(f"{job}/{failures}".encode(), digest_size=8).digest()
    return min(_LONGEST_MS, round(longest * (1 + _JITTER * int.from_bytes(digest) / 2**64)))


def after_failure(job: str, causes: Sequence[Cause], max_failures: int, now_ms: int) -> Retry | GiveUp:
    """What follows when the attempts so far ended for these causes, oldest first.

    The backoff grows with failures in a row; an eviction in between does not break the row.

    >>> after_failure("17", [Cause.preempted], max_failures=0, now_ms=5)
    Retry(not_before_ms=5)
    >>> after_failure("17", [Cause.infrastructure, Cause.user_code], max_failures=0, now_ms=0).causes[1].name
    'user_code'
    """
    if not causes:
        raise ValueError("nothing has failed")
    if sum(cause is Cause.user_code for cause in causes) > max_failures:
        return GiveUp(tuple(causes))
    if not causes[-1].waits:
        return Retry(now_ms)
    return Retry(now_ms + backoff_ms(job, sum(cause.waits for cause in causes)))
