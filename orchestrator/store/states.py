"""The two state machines: what a user sees of a job, and what is known of one submission of it. Pure."""

from enum import StrEnum

from orchestrator.store.errors import Conflict


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    """Its attempt was lost: it waits to be started again, from its last checkpoint."""
    PREEMPTING = "PREEMPTING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL

    @property
    def waits(self) -> bool:
        """Whether the queue may start it."""
        return self in (JobState.QUEUED, JobState.RECOVERING)


class AttemptState(StrEnum):
    PLANNED = "PLANNED"
    """Written down before Ray is called."""
    SUBMITTED = "SUBMITTED"
    ALIVE = "ALIVE"
    ENDED = "ENDED"
    LOST = "LOST"
    """Nothing tells how it ended, and it is certain that it runs no more."""

    @property
    def live(self) -> bool:
        """Whether it may hold resources."""
        return self in LIVE_ATTEMPT


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE = tuple(state for state in JobState if state not in TERMINAL)
LIVE_ATTEMPT = (AttemptState.PLANNED, AttemptState.SUBMITTED, AttemptState.ALIVE)

_J = JobState
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    # A job is refused while it waits; without an attempt it is cancelled at once.
    _J.QUEUED: frozenset({_J.STARTING, _J.FAILED, _J.CANCELLED}),
    # Back to QUEUED when the submission never reached Ray; at its end before anybody saw it run.
    _J.STARTING: frozenset(
        {_J.RUNNING, _J.QUEUED, _J.RECOVERING, _J.PREEMPTING, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}
    ),
    _J.RUNNING: frozenset({_J.RECOVERING, _J.PREEMPTING, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}),
    # The report of an attempt that was given up for lost may still be found.
    _J.RECOVERING: frozenset({_J.STARTING, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    # Who is told to leave may end by itself first, or be lost.
    _J.PREEMPTING: frozenset({_J.QUEUED, _J.RECOVERING, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}),
    _J.CANCELLING: frozenset({_J.CANCELLED, _J.SUCCEEDED, _J.FAILED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
}

_A = AttemptState
ATTEMPT_MOVES: dict[AttemptState, frozenset[AttemptState]] = {
    # ENDED without having been submitted: cancelled in between.
    _A.PLANNED: frozenset({_A.SUBMITTED, _A.ENDED, _A.LOST}),
    _A.SUBMITTED: frozenset({_A.ALIVE, _A.ENDED, _A.LOST}),
    _A.ALIVE: frozenset({_A.ENDED, _A.LOST}),
    _A.ENDED: frozenset(),
    _A.LOST: frozenset(),
}


def check_job_move(job_id: str, old: JobState, new: JobState) -> None:
    """Raises Conflict, with the state, when a job must not go from `old` to `new`."""
    if new not in JOB_MOVES[old]:
        raise Conflict(f"job {job_id} is {old}: it cannot become {new}", old)


def check_attempt_move(submission_id: str, old: AttemptState, new: AttemptState) -> None:
    """Raises Conflict, with the state, when an attempt must not go from `old` to `new`."""
    if new not in ATTEMPT_MOVES[old]:
        raise Conflict(f"attempt {submission_id} is {old}: it cannot become {new}", old)
