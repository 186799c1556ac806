"""What clients do to jobs: submit, cancel, resume. No lease is needed: these only tell what is wanted."""

import re
import secrets
from dataclasses import asdict
from typing import Any

from sqlalchemy import select

from jobs.hashing import digest_json
from orchestrator.store import rows
from orchestrator.store.database import Transaction
from orchestrator.store.errors import Conflict, NotFound
from orchestrator.store.moves import locked_job, move
from orchestrator.store.records import JobRecord, NewJob
from orchestrator.store.states import JobState
from orchestrator.store.tables import jobs, projects

JOB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def new_job_id(name: str) -> str:
    """A name for a job and its run directory that no other job has, here or elsewhere."""
    return f"{name}-{secrets.token_hex(5)}"


def body_digest(new: NewJob) -> str:
    """What a repeated submission must agree in."""
    if new.body_digest is not None:
        return new.body_digest
    content = asdict(new)
    for key in ("id", "run_dir", "submitted_by", "body_digest"):
        del content[key]
    return digest_json(content)


def submit(transaction: Transaction, new: NewJob, job_id: str, key: str | None) -> tuple[JobRecord, bool]:
    """The job, and whether it is a new one."""
    digest = body_digest(new)
    if (known := _known(transaction, job_id, new.project, key, digest)) is not None:
        return known, False
    _hold_project(transaction, new.project)
    values: dict[str, Any] = {
        "id": job_id,
        "project": new.project,
        "name": new.name,
        "priority": new.priority,
        "spec": dict(new.spec),
        "spec_hash": new.spec_hash,
        "demand": rows.demand_document(new.demand),
        "limit_ms": new.limit_ms,
        "run_id": job_id,
        "run_dir": new.run_dir,
        "has_code": new.has_code,
        "submitted_by": new.submitted_by,
        "idempotency_key": key,
        "body_digest": digest,
    }
    _insert(transaction, values)
    return found(transaction, job_id), True


def request_cancel(transaction: Transaction, job_id: str, by: str) -> JobRecord:
    """A job that waits is cancelled now; one with a live attempt when the controller has stopped that."""
    job = locked_job(transaction, job_id)
    if job.state.terminal:
        raise Conflict(f"job {job_id} is {job.state}: it can no longer be cancelled", job.state)
    if job.state is JobState.CANCELLING:
        return job
    running = not job.state.waits or (job.attempt is not None and job.attempt.state.live)
    to = JobState.CANCELLING if running else JobState.CANCELLED
    move(transaction, job, to, by=by, cancel_requested_by=by, cause="cancelled", detail=f"cancelled by {by}")
    return found(transaction, job_id)


def request_resume(
    transaction: Transaction, job_id: str, new_id: str, by: str, key: str | None
) -> tuple[JobRecord, bool]:  # fmt: skip
    """A new job that goes on in the run directory of one that failed or was cancelled; and whether it is a new one."""
    job = locked_job(transaction, job_id)
    digest = digest_json({"resumes": job_id})
    if (known := _known(transaction, new_id, job.project, key, digest)) is not None:
        return known, False
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        words = {
            JobState.SUCCEEDED: "there is nothing to resume",
            JobState.CANCELLING: "it can be resumed once it has ended",
        }.get(job.state, "it goes on by itself")
        raise Conflict(f"job {job_id} is {job.state}: {words}", job.state)
    live = transaction.connection.scalar(
        select(jobs.c.id).where(jobs.c.run_id == job.run_id, jobs.c.ended_ms.is_(None))
    )
    if live is not None:
        raise Conflict(f"job {job_id} is {job.state}, and job {live} goes on with its run already", job.state)
    _hold_project(transaction, job.project)
    same = ("project", "name", "priority", "spec", "spec_hash", "limit_ms", "run_id", "run_dir", "has_code")
    values: dict[str, Any] = {name: getattr(job, name) for name in same}
    values |= {"id": new_id, "demand": rows.demand_document(job.demand), "resumes": job_id, "submitted_by": by}
    values |= {"idempotency_key": key, "body_digest": digest}
    _insert(transaction, values)
    return found(transaction, new_id), True


def _known(transaction: Transaction, job_id: str, project: str, key: str | None, digest: str) -> JobRecord | None:
    """The job that the same request made before. Raises Conflict where its id or its key stands for another one."""
    same = jobs.c.id == job_id
    if key is not None:
        same = same | ((jobs.c.project == project) & (jobs.c.idempotency_key == key))
    asked = select(jobs.c.id, jobs.c.body_digest, jobs.c.idempotency_key).where(same)
    known = transaction.connection.execute(asked).first()
    if known is None:
        return None
    if known.body_digest != digest or known.idempotency_key != key:
        used = f"idempotency key {key!r}" if known.idempotency_key == key and key else f"id {known.id}"
        raise Conflict(f"{used} was used before, for another submission (job {known.id})")
    return found(transaction, known.id)


def found(transaction: Transaction, job_id: str) -> JobRecord:
    row = transaction.connection.execute(rows.select_jobs(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return rows.job(row)


def _insert(transaction: Transaction, values: dict[str, Any]) -> None:
    started = {"state": JobState.QUEUED, "submitted_ms": transaction.now_ms, "failures": []}
    transaction.connection.execute(jobs.insert().values(**values, **started))
    told = {"name": values["name"], "by": values["submitted_by"], "priority": values["priority"]}
    transaction.event(
        "job", project=values["project"], job_id=values["id"], old=None, new=JobState.QUEUED, **told,
        resumes=values.get("resumes"),
    )  # fmt: skip


def _hold_project(transaction: Transaction, name: str) -> None:
    """Raises NotFound; until the commit nobody can delete the project."""
    query = select(projects.c.name).where(projects.c.name == name).with_for_update(read=True)
    if transaction.connection.scalar(query) is None:
        raise NotFound(f"there is no project {name!r}")
