"""What goes into the store and comes out of it: frozen records. Times are milliseconds of the database's clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from orchestrator.scheduling import Demand
from orchestrator.store.states import AttemptState, JobState

Role = Literal["viewer", "submitter", "admin"]
Leaving = Literal["preempt", "cancel", "limit"]
Action = Literal["run", "resume"]
"""What an attempt executes: `thresher run`, or `thresher resume` of the run directory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Lease:
    """Who may change the state of jobs. `epoch` grows with every new holder and never repeats."""

    holder: str
    epoch: int
    ttl_ms: int
    expires_ms: int


@dataclass(frozen=True)
class NewJob:
    """A submission.

    Attributes:
        spec: the job spec, as a document.
        demand: the gang that the plan asks for.
        id: from `new_job_id`, for who must lay files down before the job is seen; None: the store makes one.
        run_dir: where the run will be, if that is known.
        body_digest: SHA-256 of what the client sent; tells a repeated submission from another one under the same
            idempotency key. None: the digest of this record.
    """

    name: str
    project: str
    spec: Mapping[str, Any]
    spec_hash: str
    demand: Demand
    priority: int = 0
    limit_ms: int | None = None
    has_code: bool = False
    id: str | None = None
    run_dir: str | None = None
    submitted_by: str | None = None
    body_digest: str | None = None


@dataclass(frozen=True)
class AttemptRecord:
    """One submission of a job.

    Attributes:
        submission_id: `{job}-{number}`, never used again.
        placement: the node of each worker.
        leaving_since_ms: when it was told to stop; None: it was not.
        cluster_id: of the Ray cluster that it was submitted to.
    """

    submission_id: str
    job_id: str
    number: int
    state: AttemptState
    action: Action
    placement: tuple[str, ...]
    run_dir: str
    planned_ms: int
    submitted_ms: int | None = None
    alive_ms: int | None = None
    ended_ms: int | None = None
    leaving_since_ms: int | None = None
    leaving_why: Leaving | None = None
    outcome: str | None = None
    cause: str | None = None
    detail: str | None = None
    cluster_id: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job, with its newest attempt.

    Attributes:
        run_id: of the run directory. A job that resumes another one goes on in that one's run: it has its `run_id`,
            which is the id of the first in the row (and the name that user code was stored under).
        reason, reserved_ms, behind: why it waits, and until when, as the queue last told.
        not_before_ms: it is not started earlier.
        claim: the placement that its victims are clearing.
        failures: the causes of all attempts that ended with one, oldest first.
        cause, detail: why it is in its state.
    """

    id: str
    project: str
    name: str
    priority: int
    spec: dict[str, Any]
    spec_hash: str
    demand: Demand
    limit_ms: int | None
    state: JobState
    unreachable_since_ms: int | None
    reason: str
    reserved_ms: int | None
    behind: str | None
    submitted_ms: int
    not_before_ms: int
    started_ms: int | None
    ended_ms: int | None
    cause: str | None
    detail: str | None
    run_id: str
    run_dir: str | None
    has_code: bool
    resumes: str | None
    submitted_by: str | None
    cancel_requested_by: str | None
    claim: tuple[str, ...] | None
    failures: tuple[str, ...]
    attempt: AttemptRecord | None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs: those that meet every field that is not None.

    Attributes:
        name: whole, not a part.
        since_ms: submitted then or later.
    """

    projects: tuple[str, ...] | None = None
    states: tuple[JobState, ...] | None = None
    name: str | None = None
    since_ms: int | None = None


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some of many. `next_cursor` asks for what follows; None: that was all."""

    items: tuple[T, ...]
    next_cursor: str | None = None


@dataclass(frozen=True)
class Reason:
    """Why a job waits, from the queue."""

    job_id: str
    text: str
    reserved_ms: int | None = None
    behind: str | None = None


@dataclass(frozen=True)
class EventRecord:
    """Something that happened. `seq` grows in the order in which transactions were committed, without gaps.

    But for the gaps that `Store.prune` leaves.
    """

    seq: int
    at_ms: int
    kind: str
    project: str | None
    job_id: str | None
    data: dict[str, Any]


@dataclass(frozen=True)
class TokenRecord:
    """A bearer token, without its secret.

    Attributes:
        project: None: all projects.
        expires_ms: None: never.
    """

    id: str
    name: str
    project: str | None
    role: Role
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None


@dataclass(frozen=True)
class NewModel:
    """A model that a job has made.

    Attributes:
        name: in the registry; versions are counted by project and name.
        artifact: its name in the run's report. A job registers an artifact once.
        path: the artifact's folder.
        lineage: what it came from, beyond job and spec: parent, stage, recipe.
        measurement: accuracy, latency and bytes, as in the report.
    """

    name: str
    artifact: str
    path: str
    spec_hash: str
    data_fingerprint: str | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    measurement: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelRecord:
    """A registered model: versions are 1, 2, 3 … and never change."""

    project: str
    name: str
    version: int
    job_id: str
    artifact: str
    path: str
    spec_hash: str
    data_fingerprint: str | None
    lineage: dict[str, Any]
    measurement: dict[str, Any]
    created_ms: int
    aliases: tuple[str, ...] = ()
