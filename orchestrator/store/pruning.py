"""What nobody asks for any more goes from the store: jobs that ended long ago, with their attempts, events and keys.

Runs go whole: a job that resumed another one, and that other one, stay or go together. Nothing goes of a run that a
registered model came from.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select

from orchestrator.store.database import Transaction
from orchestrator.store.tables import attempts, events, jobs, models

_RUNS_AT_ONCE = 100
_EVENTS_AT_ONCE = 5000
"""In one transaction, so that nobody waits long for it."""


@dataclass(frozen=True)
class Pruned:
    """What went. `runs` and `submissions` name what the service keeps beside the database: modules and logs."""

    runs: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    submissions: tuple[str, ...] = ()
    num_events: int = 0

    def __add__(self, other: "Pruned") -> "Pruned":
        return Pruned(
            self.runs + other.runs,
            self.jobs + other.jobs,
            self.submissions + other.submissions,
            self.num_events + other.num_events,
        )


def would_go(connection: Connection, before_ms: int) -> Pruned:
    """All that would go now."""
    old = _old(connection, before_ms)
    told = events.c.job_id.in_(select(jobs.c.id).where(old)) | _of_no_job(before_ms)
    num = connection.scalar(select(func.count()).select_from(events).where(told))
    return _named(connection, old) + Pruned(num_events=num or 0)


def some_runs(transaction: Transaction, before_ms: int) -> Pruned:
    """Removes some runs whose jobs have all ended before `before_ms`; nothing is left where it removes none."""
    connection = transaction.connection
    old = _old(connection, before_ms)
    runs = connection.scalars(select(jobs.c.run_id).where(old).distinct().limit(_RUNS_AT_ONCE)).all()
    # Who resumes a job holds it. What was resumed until we held it ourselves is no longer among the old.
    connection.execute(select(jobs.c.id).where(jobs.c.run_id.in_(runs)).order_by(jobs.c.id).with_for_update())
    gone = _named(connection, old & jobs.c.run_id.in_(runs))
    num = connection.execute(delete(events).where(events.c.job_id.in_(gone.jobs))).rowcount
    connection.execute(delete(attempts).where(attempts.c.job_id.in_(gone.jobs)))
    connection.execute(delete(jobs).where(jobs.c.id.in_(gone.jobs)))
    return gone + Pruned(num_events=num)


def some_events(transaction: Transaction, before_ms: int) -> Pruned:
    """Removes some old events of no job: leaders, tokens, projects, aliases."""
    some = select(events.c.seq).where(_of_no_job(before_ms)).order_by(events.c.seq).limit(_EVENTS_AT_ONCE)
    return Pruned(num_events=transaction.connection.execute(delete(events).where(events.c.seq.in_(some))).rowcount)


def _old(connection: Connection, before_ms: int) -> ColumnElement[bool]:
    """Jobs of runs in which nothing lives, nothing is newer, and that no model came from."""
    others = jobs.alias()
    needed = select(others.c.run_id).where(or_(others.c.ended_ms.is_(None), others.c.ended_ms >= before_ms))
    of_models = select(others.c.run_id).join(models, models.c.job_id == others.c.id)
    named = {lineage.get("run_id") for lineage in connection.scalars(select(models.c.lineage))} - {None}
    return jobs.c.run_id.not_in(needed) & jobs.c.run_id.not_in(of_models) & jobs.c.run_id.not_in(named)


def _of_no_job(before_ms: int) -> ColumnElement[bool]:
    return events.c.job_id.is_(None) & (events.c.at_ms < before_ms)


def _named(connection: Connection, which: ColumnElement[bool]) -> Pruned:
    found = connection.execute(select(jobs.c.id, jobs.c.run_id).where(which).order_by(jobs.c.id)).all()
    submitted = select(attempts.c.submission_id).where(attempts.c.job_id.in_(select(jobs.c.id).where(which)))
    runs = sorted({row.run_id for row in found})
    return Pruned(tuple(runs), tuple(row.id for row in found), tuple(sorted(connection.scalars(submitted))))
