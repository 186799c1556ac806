"""The one way in which a job or an attempt changes its state: locked, checked, written, told."""

from typing import Any

from sqlalchemy import select, update

from orchestrator.store import rows
from orchestrator.store.database import Transaction
from orchestrator.store.errors import NotFound
from orchestrator.store.records import AttemptRecord, JobRecord
from orchestrator.store.states import AttemptState, JobState, check_attempt_move, check_job_move
from orchestrator.store.tables import attempts, jobs


def locked_job(transaction: Transaction, job_id: str) -> JobRecord:
    """The job; nobody else changes it, or starts an attempt of it, until the commit. Raises NotFound."""
    connection = transaction.connection
    if connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()) is None:
        raise NotFound(f"there is no job {job_id}")
    return rows.job(connection.execute(rows.select_jobs(jobs.c.id == job_id)).one())


def locked_attempt(transaction: Transaction, submission_id: str) -> tuple[JobRecord, AttemptRecord]:
    """The attempt and its job, both locked by the job's row. Raises NotFound."""
    connection = transaction.connection
    job_id = connection.scalar(select(attempts.c.job_id).where(attempts.c.submission_id == submission_id))
    if job_id is None:
        raise NotFound(f"there is no attempt {submission_id}")
    job = locked_job(transaction, job_id)
    query = rows.select_attempts(attempts.c.submission_id == submission_id)
    return job, rows.attempt(connection.execute(query).one())


def move(transaction: Transaction, job: JobRecord, to: JobState, *, by: str | None = None, **values: Any) -> None:
    """Raises Conflict when the job must not go there."""
    check_job_move(job.id, job.state, to)
    values |= {"state": to, "unreachable_since_ms": None}
    if to.terminal:
        values |= {"ended_ms": transaction.now_ms, "reason": "", "reserved_ms": None, "behind": None, "claim": None}
    transaction.connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
    told = {name: values[name] for name in ("cause", "detail") if values.get(name) is not None}
    if by is not None:
        told["by"] = by
    transaction.event("job", project=job.project, job_id=job.id, old=job.state, new=to, **told)


def move_attempt(
    transaction: Transaction, job: JobRecord, attempt: AttemptRecord, to: AttemptState, **values: Any
) -> None:
    """Raises Conflict when the attempt must not go there."""
    check_attempt_move(attempt.submission_id, attempt.state, to)
    where = attempts.c.submission_id == attempt.submission_id
    transaction.connection.execute(update(attempts).where(where).values(state=to, **values))
    told = {name: values[name] for name in ("outcome", "cause", "detail") if values.get(name) is not None}
    tell_attempt(transaction, job, attempt.submission_id, attempt.state, to, **told)


def tell_attempt(
    transaction: Transaction, job: JobRecord, submission_id: str, old: str | None, new: str, **told: Any
) -> None:
    values = {"submission_id": submission_id, "old": old, "new": new, **told}
    transaction.event("attempt", project=job.project, job_id=job.id, **values)
