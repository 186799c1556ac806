"""What the controller does to jobs and attempts. Each function is one transaction, after `leases.fence`.

Each may be run twice with the same arguments: the second time it finds the first one's effect and changes nothing.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, update

from orchestrator.store import registry, rows
from orchestrator.store.database import Transaction
from orchestrator.store.errors import Conflict
from orchestrator.store.moves import locked_attempt, locked_job, move, move_attempt, tell_attempt
from orchestrator.store.records import Action, AttemptRecord, JobRecord, Leaving, NewModel, Reason
from orchestrator.store.states import AttemptState, JobState, check_job_move
from orchestrator.store.tables import attempts, jobs

_NOT_WAITING: dict[str, Any] = {"reason": "", "reserved_ms": None, "behind": None, "claim": None}


def plan_attempt(
    transaction: Transaction, epoch: int, job_id: str, placement: Sequence[str], run_dir: str, action: Action
) -> AttemptRecord:
    """Writes down, before Ray is called, that the job is about to be submitted, and under which id."""
    job = locked_job(transaction, job_id)
    places = tuple(placement)
    if job.attempt is not None and job.attempt.state.live:
        planned = (AttemptState.PLANNED, places, run_dir, action)
        if (job.attempt.state, job.attempt.placement, job.attempt.run_dir, job.attempt.action) == planned:
            return job.attempt
        raise Conflict(f"job {job_id} has attempt {job.attempt.submission_id}, which is {job.attempt.state}", job.state)
    check_job_move(job_id, job.state, JobState.STARTING)
    if len(places) != job.demand.workers:
        raise ValueError(f"job {job_id}: {job.demand.workers} workers, {len(places)} places")
    number = (0 if job.attempt is None else job.attempt.number) + 1
    submission_id = f"{job_id}-{number}"
    values = {"submission_id": submission_id, "job_id": job_id, "number": number, "state": AttemptState.PLANNED}
    values |= {"action": action, "placement": list(places), "run_dir": run_dir, "epoch": epoch}
    transaction.connection.execute(insert(attempts).values(**values, planned_ms=transaction.now_ms))
    move(transaction, job, JobState.STARTING, run_dir=run_dir, num_attempts=number, not_before_ms=0, **_NOT_WAITING)
    tell_attempt(transaction, job, submission_id, None, AttemptState.PLANNED, placement=list(places), action=action)
    return _attempt(transaction, submission_id)


def mark_submitted(transaction: Transaction, submission_id: str, cluster_id: str | None) -> AttemptRecord:
    job, attempt = locked_attempt(transaction, submission_id)
    if attempt.state is not AttemptState.SUBMITTED:
        values = {"submitted_ms": transaction.now_ms, "cluster_id": cluster_id}
        move_attempt(transaction, job, attempt, AttemptState.SUBMITTED, **values)
    return _attempt(transaction, submission_id)


def mark_alive(transaction: Transaction, submission_id: str) -> AttemptRecord:
    """The driver runs; so does the job, unless it was told to stop in the meantime."""
    job, attempt = locked_attempt(transaction, submission_id)
    if attempt.state is not AttemptState.ALIVE:
        move_attempt(transaction, job, attempt, AttemptState.ALIVE, alive_ms=transaction.now_ms)
        if job.state is JobState.STARTING:
            started_ms = transaction.now_ms if job.started_ms is None else job.started_ms
            move(transaction, job, JobState.RUNNING, started_ms=started_ms)
    return _attempt(transaction, submission_id)


def end_attempt(
    transaction: Transaction, submission_id: str, to: AttemptState, outcome: str | None, cause: str | None,
    detail: str | None,
) -> AttemptRecord:  # fmt: skip
    """The attempt is certainly gone: what it held is free. The job's state is for `requeue` or `finish` to change."""
    job, attempt = locked_attempt(transaction, submission_id)
    ending = {"outcome": outcome, "cause": cause, "detail": detail}
    if attempt.state is to and (attempt.outcome, attempt.cause) == (outcome, cause):
        return attempt
    move_attempt(transaction, job, attempt, to, ended_ms=transaction.now_ms, **ending)
    if cause is not None:
        failures = [*job.failures, cause]
        transaction.connection.execute(update(jobs).where(jobs.c.id == job.id).values(failures=failures))
    return _attempt(transaction, submission_id)


def finish(
    transaction: Transaction, job_id: str, to: JobState, cause: str | None, detail: str | None,
    models: Sequence[NewModel],
) -> JobRecord:  # fmt: skip
    if not to.terminal:
        raise ValueError(f"{to} is no state that a job ends in")
    job = locked_job(transaction, job_id)
    if job.state is not to:
        _need_no_attempt(job)
        move(transaction, job, to, cause=cause, detail=detail)
    registry.record(transaction, job, models)
    return _job(transaction, job_id)


def requeue(
    transaction: Transaction, job_id: str, to: JobState, not_before_ms: int, cause: str | None, detail: str | None
) -> JobRecord:
    if not to.waits:
        raise ValueError(f"{to} is no state that a job waits in")
    job = locked_job(transaction, job_id)
    if job.state is not to:
        _need_no_attempt(job)
        move(transaction, job, to, not_before_ms=not_before_ms, cause=cause, detail=detail, **_NOT_WAITING)
    return _job(transaction, job_id)


def mark_leaving(transaction: Transaction, job_id: str, why: Leaving) -> JobRecord:
    """Writes down, before it is told so, that the live attempt is to checkpoint and stop."""
    job = locked_job(transaction, job_id)
    attempt = job.attempt
    if attempt is None or not attempt.state.live:
        raise Conflict(f"job {job_id} is {job.state} and has no live attempt that could leave", job.state)
    if attempt.leaving_why is not None and why != "cancel":
        return job  # it leaves already, for a reason that stands
    to = {"preempt": JobState.PREEMPTING, "cancel": JobState.CANCELLING, "limit": job.state}[why]
    if to is not job.state:
        move(transaction, job, to)
    if attempt.leaving_why != why:
        since_ms = transaction.now_ms if attempt.leaving_since_ms is None else attempt.leaving_since_ms
        where = attempts.c.submission_id == attempt.submission_id
        values = {"leaving_since_ms": since_ms, "leaving_why": why}
        transaction.connection.execute(update(attempts).where(where).values(**values))
        told = {"submission_id": attempt.submission_id, "why": why}
        transaction.event("leaving", project=job.project, job_id=job_id, **told)
    return _job(transaction, job_id)


def set_reasons(transaction: Transaction, reasons: Sequence[Reason]) -> None:
    """What the queue says of jobs that wait; those that wait no longer are passed over. No events: it says much."""
    for reason in reasons:
        where = (jobs.c.id == reason.job_id) & jobs.c.state.in_([JobState.QUEUED, JobState.RECOVERING])
        values = {"reason": reason.text, "reserved_ms": reason.reserved_ms, "behind": reason.behind}
        transaction.connection.execute(update(jobs).where(where).values(**values))


def set_unreachable(transaction: Transaction, job_ids: Sequence[str], since_ms: int | None) -> None:
    """Since when nothing is known of these jobs, or None: they answer again. The first time stands."""
    for job_id in job_ids:
        job = locked_job(transaction, job_id)
        if job.state.terminal or (job.unreachable_since_ms is None) == (since_ms is None):
            continue
        transaction.connection.execute(update(jobs).where(jobs.c.id == job_id).values(unreachable_since_ms=since_ms))
        kind = "reachable" if since_ms is None else "unreachable"
        transaction.event(kind, project=job.project, job_id=job_id, since_ms=since_ms or job.unreachable_since_ms)


def set_claim(transaction: Transaction, job_id: str, placement: Sequence[str] | None) -> JobRecord:
    """The nodes that victims are clearing for a job that waits; None: it gives them up."""
    job = locked_job(transaction, job_id)
    claim = None if placement is None else tuple(placement)
    if job.claim == claim:
        return job
    if claim is not None and not job.state.waits:
        raise Conflict(f"job {job_id} is {job.state}: it waits for no nodes", job.state)
    stored = None if claim is None else list(claim)
    transaction.connection.execute(update(jobs).where(jobs.c.id == job_id).values(claim=stored))
    transaction.event("claim", project=job.project, job_id=job_id, placement=stored)
    return _job(transaction, job_id)


def _need_no_attempt(job: JobRecord) -> None:
    if job.attempt is not None and job.attempt.state.live:
        words = f"attempt {job.attempt.submission_id} is {job.attempt.state}, and not confirmed to be gone"
        raise Conflict(f"job {job.id} is {job.state}: {words}", job.state)


def _job(transaction: Transaction, job_id: str) -> JobRecord:
    return rows.job(transaction.connection.execute(rows.select_jobs(jobs.c.id == job_id)).one())


def _attempt(transaction: Transaction, submission_id: str) -> AttemptRecord:
    query = rows.select_attempts(attempts.c.submission_id == submission_id)
    return rows.attempt(transaction.connection.execute(query).one())
