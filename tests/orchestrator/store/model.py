"""What the store promises of jobs and attempts, in memory: written anew, without the store's tables of transitions."""

from dataclasses import dataclass, field

from orchestrator.store import JobState

S = JobState
ENDS = (S.SUCCEEDED, S.FAILED, S.CANCELLED)
WAITING = (S.QUEUED, S.RECOVERING)
MAY_FINISH = {
    S.SUCCEEDED: {S.STARTING, S.RUNNING, S.RECOVERING, S.PREEMPTING, S.CANCELLING},
    S.FAILED: {S.QUEUED, S.STARTING, S.RUNNING, S.RECOVERING, S.PREEMPTING, S.CANCELLING},
    S.CANCELLED: {S.QUEUED, S.RECOVERING, S.CANCELLING},
}
MAY_WAIT = {S.QUEUED: {S.STARTING, S.PREEMPTING}, S.RECOVERING: {S.STARTING, S.RUNNING, S.PREEMPTING}}
HOLDERS = ("ann", "bob")
LONG_S = 3600.0


@dataclass
class Attempt:
    state: str = "PLANNED"
    leaving: str | None = None
    ending: tuple[str, str | None, str | None] | None = None

    @property
    def live(self) -> bool:
        return self.state in ("PLANNED", "SUBMITTED", "ALIVE")


@dataclass
class Job:
    project: str
    name: str
    key: str | None
    run_id: str
    resumes: str | None = None
    state: JobState = S.QUEUED
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def attempt(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def live(self) -> bool:
        return self.attempt is not None and self.attempt.live

    @property
    def ended(self) -> bool:
        return self.state in ENDS
