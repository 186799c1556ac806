"""What the service answers, typed: used by the service to answer and by the clients to read.

Times are milliseconds since 1970 of the service's database. Keys that a client does not know are passed over, so that
an older client reads a newer service.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

JobState = Literal[
    "QUEUED", "STARTING", "RUNNING", "RECOVERING", "PREEMPTING", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED"
]
TERMINAL: tuple[JobState, ...] = ("SUCCEEDED", "FAILED", "CANCELLED")
Role = Literal["viewer", "submitter", "admin"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of projects, models and tokens; as of a spec's `name`."""
ALIAS = r"^[A-Za-z][A-Za-z0-9._-]{0,63}$"
"""Not a number: that would be a version."""


class Shape(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, document: Any) -> Self:
        return cls.model_validate(document)


class Attempt(Shape):
    """One submission of a job to Ray."""

    number: int
    submission_id: str
    state: Literal["PLANNED", "SUBMITTED", "ALIVE", "ENDED", "LOST"]
    action: Literal["run", "resume"] = "run"
    placement: tuple[str, ...]
    """The node of each worker."""
    planned_ms: int
    submitted_ms: int | None = None
    alive_ms: int | None = None
    ended_ms: int | None = None
    leaving_since_ms: int | None = None
    leaving_why: str | None = None
    outcome: str | None = None
    cause: str | None = None
    detail: str | None = None


class JobDemand(Shape):
    """A gang: so many workers, each of which needs this."""

    workers: int
    each: dict[str, float]
    """By Ray's names: CPU, GPU."""


class Job(Shape):
    """A job as the service knows it."""

    id: str
    project: str
    name: str
    priority: int
    state: JobState
    unreachable_since_ms: int | None = None
    """Since when nothing is known of the attempt; the state is what was known last."""
    reason: str = ""
    """Why it waits."""
    reserved_ms: int | None = None
    behind: str | None = None
    demand: JobDemand
    limit_ms: int | None = None
    submitted_ms: int
    not_before_ms: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None
    cause: str | None = None
    detail: str | None = None
    run_id: str | None = None
    run_dir: str | None = None
    has_code: bool = False
    resumes: str | None = None
    submitted_by: str | None = None
    cancel_requested_by: str | None = None
    failures: tuple[str, ...] = ()
    attempt: Attempt | None = None
    """The newest."""

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


class JobDetail(Job):
    """With what was asked for, and everything that was tried."""

    spec: dict[str, Any]
    attempts: tuple[Attempt, ...] = ()
    summary: dict[str, Any] | None = None
    """Of the report, once there is one: selected, its measurement, goodput."""


class JobPage(Shape):
    jobs: tuple[Job, ...]
    next: str | None = None
    """The cursor of the next page; None on the last."""


class Event(Shape):
    """A change that was committed; `seq` grows, and is the id to go on from."""

    seq: int
    t_ms: int
    job: str | None = None
    project: str | None = None
    kind: str
    fields: dict[str, Any] = Field(default_factory=dict)


class EventPage(Shape):
    events: tuple[Event, ...]
    next: int
    """`after` of the next page."""


class MetricPage(Shape):
    metrics: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl: {t, stage, trial, epoch, step, split, loss, metric, lr}."""
    next: int
    """`after` of the next page: a position in the file, in bytes."""


class File(Shape):
    path: str
    bytes: int
    sha256: str | None = None


class ArtifactCard(Shape):
    """A model of a run, with its files; `card` is its artifact.json."""

    name: str
    selected: bool
    files: tuple[File, ...]
    card: dict[str, Any]


class ArtifactList(Shape):
    artifacts: tuple[ArtifactCard, ...]


class CodeReceipt(Shape):
    """An archive of modules that was taken in."""

    sha256: str
    bytes: int
    files: int


class ModelVersion(Shape):
    """A registered model: never overwritten; where it comes from, and what it measured."""

    project: str
    name: str
    version: int
    aliases: tuple[str, ...] = ()
    job: str
    artifact: str
    spec_hash: str
    dataset: str | None = None
    """Fingerprint of the data."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """What it came from, beyond job and spec: parent, stage, recipe."""
    measurement: dict[str, Any] = Field(default_factory=dict)
    files: tuple[File, ...] = ()
    created_ms: int


class ModelPage(Shape):
    models: tuple[ModelVersion, ...]


Amounts = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]{0,63}$")], Annotated[float, Field(ge=0, le=1e12)]],
    Field(max_length=32),
]


class Quota(Shape):
    """What a project owns of its pool, by Ray's names; a resource that `nominal` does not name is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nominal: Amounts
    borrowing_limit: Amounts | None = None
    lending_limit: Amounts | None = None


class ProjectSettings(Shape):
    """Who shares with whom: see docs/service.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str = Field(default="default", pattern=NAME)
    weight: int = Field(default=1, ge=1, le=1_000_000)
    quota: Quota | None = None
    preempt_within: Literal["never", "lower_priority"] = "lower_priority"
    reclaim: Literal["never", "lower_priority", "any"] = "any"


class Project(ProjectSettings):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str


class ProjectList(Shape):
    projects: tuple[Project, ...]


class Token(Shape):
    """Who may do what; the secret itself is not kept anywhere."""

    id: str
    name: str
    project: str | None = None
    """None: every project."""
    role: Role
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None


class NewToken(Token):
    secret: str
    """Said once."""


class TokenList(Shape):
    tokens: tuple[Token, ...]


class ClusterNode(Shape):
    name: str
    total: dict[str, float]
    taken: dict[str, float] = Field(default_factory=dict)


class ClusterState(Shape):
    reachable: bool
    identity: str | None = None
    nodes: tuple[ClusterNode, ...] = ()
    jobs: dict[str, int] = Field(default_factory=dict)
    """How many live jobs there are, by state; of the caller's projects."""
    detail: str = ""


class RefusedProblem(Shape):
    path: str
    message: str
    value: Any = None
    allowed: str | None = None
    nearest: str | None = None


class Refused(Shape):
    """What every refusal says."""

    error: str
    message: str
    problems: tuple[RefusedProblem, ...]
    state: str | None = None
    """Of the job, where a transition was in conflict with it."""
