"""What the queue is told and what it answers: a snapshot of the cluster, and decisions.

Amounts are whole thousandths (4 CPU = 4000), times whole milliseconds of the database's clock: nothing here is rounded,
so two machines that see the same snapshot decide the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Self

Resources = Mapping[str, int]
"""Thousandths, by Ray's names: CPU, GPU, memory (bytes)."""


def milli(amounts: Mapping[str, float]) -> dict[str, int]:
    """Amounts as Ray gives them, in thousandths.

    >>> milli({"CPU": 4, "GPU": 0.5})
    {'CPU': 4000, 'GPU': 500}
    """
    return {name: round(1000 * amount) for name, amount in amounts.items()}


@lru_cache(4096)
def _one_for_all(bundle: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The same object for all that are equal: thousands of jobs ask for a few things, and are grouped by them."""
    return bundle


@dataclass(frozen=True, slots=True)
class Demand:
    """A gang: `workers` equal bundles, each whole on one node; all of them start or none.

    >>> Demand.of(2, CPU=4, GPU=1)
    Demand(workers=2, bundle=(('CPU', 4000), ('GPU', 1000)))
    """

    workers: int
    bundle: tuple[tuple[str, int], ...]
    """(name, thousandths), by name; nothing that is zero."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"a gang has at least one worker, not {self.workers}")
        if not self.bundle or any(amount <= 0 for _, amount in self.bundle):
            raise ValueError(f"a worker needs something, and of nothing less than none: {dict(self.bundle)}")
        if list(self.bundle) != sorted(dict(self.bundle).items()):
            raise ValueError(f"the resources of a bundle stand in order, each once: {self.bundle}")
        object.__setattr__(self, "bundle", _one_for_all(self.bundle))

    @classmethod
    def of(cls, workers: int, **amounts: float) -> Self:
        """From amounts in whole units."""
        return cls(workers, tuple(sorted((name, amount) for name, amount in milli(amounts).items() if amount)))

    @property
    def total(self) -> dict[str, int]:
        return {name: self.workers * amount for name, amount in self.bundle}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that answers."""

    name: str
    total: Resources
    taken: Resources = field(default_factory=dict)
    """What others than the queue's own gangs hold there."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project owns of its pool. A resource that `nominal` does not name is not limited."""

    nominal: Resources
    borrowing_limit: Resources | None = None
    """At most this much beyond nominal, from what others in the pool leave unused; None: whatever they leave."""
    lending_limit: Resources | None = None
    """At most this much of nominal is lent; None: all that is unused."""


@dataclass(frozen=True, slots=True)
class Project:
    """Who shares with whom.

    A project without a quota owns nothing and may take what is free: all that it uses counts as borrowed.
    """

    name: str
    quota: Quota | None = None
    pool: str = "default"
    weight: int = 1
    """A project of weight 2 may borrow twice as much before it comes after one of weight 1."""
    preempt_within: Literal["never", "lower_priority"] = "lower_priority"
    reclaim: Literal["never", "lower_priority", "any"] = "any"
    """From which borrowers a job that stays within nominal takes back."""

    def __post_init__(self) -> None:
        if self.weight < 1:
            raise ValueError(f"project {self.name}: a weight is at least 1, not {self.weight}")


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for."""

    id: str
    project: str
    demand: Demand
    priority: int
    submitted_ms: int
    limit_ms: int | None = None
    """Time limit of one attempt; None: it may never end."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A job that waits to be started."""

    job: Job
    not_before_ms: int = 0
    """Set by a retry's backoff."""
    claim: tuple[str, ...] | None = None
    """The placement that its victims are clearing, from `Preempt`."""
    admitted: bool = True
    """Whether the submission was found feasible. Before that it can be refused, afterwards it waits for nodes."""
    reason: str = ""
    """What was last told: `Wait` says only what is new."""


@dataclass(frozen=True, slots=True)
class Gang:
    """A live attempt: it holds its resources until it is confirmed to be gone."""

    job: Job
    placement: tuple[str, ...]
    """The node of each bundle."""
    started_ms: int
    leaving_since_ms: int | None = None
    """When it was told to stop: preempted or cancelled."""

    def __post_init__(self) -> None:
        if len(self.placement) != self.job.demand.workers:
            raise ValueError(f"job {self.job.id}: {self.job.demand.workers} workers, {len(self.placement)} places")


@dataclass(frozen=True, slots=True)
class Policy:
    reservations: int = 1
    """How many jobs that do not fit get a start that nothing below may delay."""
    grace_ms: int = 30_000
    """How long a gang may take to write its checkpoint and leave."""

    def __post_init__(self) -> None:
        if self.reservations < 1 or self.grace_ms < 0:
            raise ValueError("at least one reservation, and no less than no grace")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision may depend on. The order within the tuples means nothing."""

    now_ms: int
    nodes: tuple[Node, ...]
    gangs: tuple[Gang, ...] = ()
    pending: tuple[Pending, ...] = ()
    projects: tuple[Project, ...] = ()
    """A project that is not named here has no quota."""
    policy: Policy = Policy()
    growth: tuple[Node, ...] = ()
    """Nodes that the cluster could still get: a job that would fit on them too is not refused."""

    def __post_init__(self) -> None:
        live = {gang.job.id for gang in self.gangs}
        waiting = {pending.job.id for pending in self.pending}
        if len(live) != len(self.gangs) or len(waiting) != len(self.pending) or live & waiting:
            raise ValueError("a job stands in a snapshot once: it has at most one live attempt, or waits")
        for what, names in (("node", self.nodes), ("project", self.projects)):
            if len({one.name for one in names}) != len(names):
                raise ValueError(f"a {what} stands in a snapshot once")


@dataclass(frozen=True, slots=True)
class Start:
    job: str
    placement: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preempt:
    """The victims checkpoint, leave, and wait again with their original time; `placement` is kept for `for_job`."""

    for_job: str
    victims: tuple[str, ...]
    placement: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class DropClaim:
    """A claim that can no longer be met: a node is gone, or a victim does not leave."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The job can never start, and says so with the numbers."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    job: str
    reason: str
    reserved_ms: int | None = None
    behind: str | None = None


Decision = Start | Preempt | DropClaim | Refuse | Wait
