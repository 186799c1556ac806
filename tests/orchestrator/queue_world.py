"""A controller, a store and a cluster in simulated time, each of which can fail where the real ones do.

The store outlives everything and fences writes by the leader's epoch. The cluster forgets all when its head restarts.
The controller writes its intent before it acts, and can be stopped between any two steps.
"""

from dataclasses import dataclass, field, replace

import queue_checks

from orchestrator.scheduling import (
    DropClaim,
    Gang,
    Job,
    Node,
    Pending,
    Policy,
    Preempt,
    Project,
    Refuse,
    Snapshot,
    Start,
    Wait,
)
from orchestrator.scheduling.retry import Cause, Retry, after_failure

WAITING, LIVE, DONE = "waiting", "live", "done"


class Stale(Exception):
    """A write of somebody who is no longer the leader."""


class Crash(Exception):
    """The controller stops here."""


class Unreachable(Exception):
    """No answer: what was asked may have been done or not."""


class AlreadyExists(Exception):
    """This submission id was used before."""


@dataclass
class Submission:
    job: Job
    placement: tuple[str, ...]
    ends_ms: int
    stopping: bool = False


@dataclass
class Cluster:
    """Ray's side. `clock_ms` is real time: no jump of the store's clock touches it."""

    nodes: tuple[Node, ...]
    clock_ms: int = 0
    identity: int = 0
    running: dict[str, Submission] = field(default_factory=dict)
    ended: dict[str, bool] = field(default_factory=dict)
    """By submission id: whether it ran to its end."""
    lose_replies: int = 0

    def submit(self, name: str, job: Job, placement: tuple[str, ...], length_ms: int) -> None:
        if name in self.running or name in self.ended:
            raise AlreadyExists
        alive = [other for other, one in self.running.items() if one.job.id == job.id]
        assert not alive, f"{name} is submitted while {alive} runs"
        self.running[name] = Submission(job, placement, self.clock_ms + length_ms)
        self.check()
        if self.lose_replies:
            self.lose_replies -= 1
            raise Unreachable

    def check(self) -> None:
        gangs = [Gang(replace(one.job, id=name), one.placement, 0) for name, one in self.running.items()]
        for left in queue_checks.free(Snapshot(0, self.nodes, tuple(gangs))).values():
            assert all(amount >= 0 for amount in left.values()), "a node is oversubscribed"

    def stop(self, name: str) -> None:
        """Fire and forget: it ends a little later."""
        if name in self.running:
            self.running[name].stopping = True

    def advance(self, by_ms: int) -> None:
        self.clock_ms += by_ms
        for name, one in list(self.running.items()):
            if one.ends_ms <= self.clock_ms or one.stopping:
                del self.running[name]
                self.ended[name] = one.ends_ms <= self.clock_ms

    def restart_head(self) -> None:
        self.running.clear()
        self.ended.clear()
        self.identity += 1


@dataclass
class Attempt:
    number: int
    placement: tuple[str, ...]
    started_ms: int
    seen_on: int | None = None
    """The cluster's identity when it was last seen; None while PLANNED."""
    leaving_since_ms: int | None = None


@dataclass
class Row:
    job: Job
    length_ms: int
    """How long it really runs."""
    state: str = WAITING
    pending: Pending | None = None
    attempt: Attempt | None = None
    attempts: int = 0
    causes: list[Cause] = field(default_factory=list)
    outcome: str = ""
    cancelled: bool = False


@dataclass
class Store:
    clock_ms: int = 1_000_000_000
    epoch: int = 0
    rows: dict[str, Row] = field(default_factory=dict)

    def fence(self, epoch: int) -> None:
        """Stands in every write: the WHERE of the lease."""
        if epoch != self.epoch:
            raise Stale


@dataclass
class Controller:
    store: Store
    cluster: Cluster
    projects: tuple[Project, ...]
    policy: Policy
    epoch: int
    steps_left: int | None = None
    """Crashes when they are used up."""
    evicted: list[tuple[str, str]] = field(default_factory=list)

    def tick(self) -> None:
        self._reconcile()
        for decision in queue_checks.check(self.snapshot()):
            self._carry_out(decision)

    def snapshot(self) -> Snapshot:
        rows = self.store.rows.values()
        gangs = tuple(
            Gang(row.job, row.attempt.placement, row.attempt.started_ms, row.attempt.leaving_since_ms)
            for row in rows
            if row.attempt
        )
        pending = tuple(row.pending for row in rows if row.state == WAITING and row.pending)
        return Snapshot(self.store.clock_ms, self.cluster.nodes, gangs, pending, self.projects, self.policy)

    def _step(self) -> None:
        self.store.fence(self.epoch)
        if self.steps_left is not None:
            if self.steps_left == 0:
                raise Crash
            self.steps_left -= 1

    def _carry_out(self, decision: object) -> None:
        self._step()
        rows, now_ms = self.store.rows, self.store.clock_ms
        match decision:
            case Start(job, placement):
                row = rows[job]
                row.attempts += 1
                row.state, row.pending = LIVE, None
                row.attempt = Attempt(row.attempts, placement, now_ms)  # the intent, before the effect
                self._step()
                self._submit(row)
            case Preempt(for_job, victims, placement):
                waiting = rows[for_job].pending
                assert waiting is not None
                rows[for_job].pending = replace(waiting, claim=placement)
                for victim in victims:
                    attempt = rows[victim].attempt
                    assert attempt is not None
                    attempt.leaving_since_ms = now_ms
                    self.evicted.append((for_job, victim))
            case DropClaim(job):
                waiting = rows[job].pending
                assert waiting is not None
                rows[job].pending = replace(waiting, claim=None)
            case Refuse(job):
                rows[job].state, rows[job].outcome, rows[job].pending = DONE, "refused", None
            case Wait(job, reason):
                waiting = rows[job].pending
                assert waiting is not None
                rows[job].pending = replace(waiting, reason=reason, admitted=True)

    def _submit(self, row: Row) -> None:
        attempt = row.attempt
        assert attempt is not None
        try:
            self.cluster.submit(f"{row.job.id}-{attempt.number}", row.job, attempt.placement, row.length_ms)
        except Unreachable:
            return  # it stays PLANNED: the same id is submitted again, which does no harm
        except AlreadyExists:
            pass
        self._step()
        attempt.seen_on = self.cluster.identity

    def _reconcile(self) -> None:
        known = {f"{row.job.id}-{row.attempt.number}" for row in self.store.rows.values() if row.attempt}
        for name in sorted(self.cluster.running.keys() - known):
            self.cluster.stop(name)
        for row in list(self.store.rows.values()):
            if row.cancelled and row.state == WAITING:
                self._step()
                row.state, row.outcome, row.pending = DONE, "cancelled", None
            attempt = row.attempt
            if attempt is None:
                continue
            name = f"{row.job.id}-{attempt.number}"
            if name in self.cluster.ended:
                self._step()
                self._ended(row, Cause.preempted if not self.cluster.ended[name] else None)
            elif name in self.cluster.running:
                if attempt.leaving_since_ms is not None or row.cancelled:
                    self._step()
                    attempt.leaving_since_ms = attempt.leaving_since_ms or self.store.clock_ms
                    self.cluster.stop(name)
            elif attempt.seen_on is None:
                self._step()  # whoever lost the lease does not submit either
                self._submit(row)
            else:
                assert attempt.seen_on != self.cluster.identity, "the cluster forgets only when its head restarts"
                self._step()
                self._ended(row, Cause.infrastructure)

    def _ended(self, row: Row, cause: Cause | None) -> None:
        row.attempt = None
        if cause is None or row.cancelled:
            row.state, row.outcome = DONE, "cancelled" if row.cancelled else "succeeded"
            return
        row.causes.append(cause)
        again = after_failure(row.job.id, row.causes, max_failures=0, now_ms=self.store.clock_ms)
        assert isinstance(again, Retry), "only the job's own code uses up its retries"
        row.state, row.pending = WAITING, Pending(row.job, again.not_before_ms)
