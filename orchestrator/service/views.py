"""From the store's records to what is answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import scheduling
from orchestrator.client import shapes
from orchestrator.store import AttemptRecord, EventRecord, JobRecord, ModelRecord, TokenRecord

_AS_THEY_ARE = (
    *("id", "project", "name", "priority", "unreachable_since_ms", "reason", "reserved_ms", "behind", "limit_ms"),
    *("submitted_ms", "not_before_ms", "started_ms", "ended_ms", "cause", "detail", "run_id", "run_dir", "has_code"),
    *("resumes", "submitted_by", "cancel_requested_by", "failures"),
)


def units(amounts: Mapping[str, int]) -> dict[str, float]:
    """Thousandths in whole units."""
    return {name: amount / 1000 for name, amount in amounts.items()}


def attempt_view(attempt: AttemptRecord) -> shapes.Attempt:
    return shapes.Attempt(
        number=attempt.number,
        submission_id=attempt.submission_id,
        state=attempt.state.value,
        action=attempt.action,
        placement=attempt.placement,
        planned_ms=attempt.planned_ms,
        submitted_ms=attempt.submitted_ms,
        alive_ms=attempt.alive_ms,
        ended_ms=attempt.ended_ms,
        leaving_since_ms=attempt.leaving_since_ms,
        leaving_why=attempt.leaving_why,
        outcome=attempt.outcome,
        cause=attempt.cause,
        detail=attempt.detail,
    )


def job_view(job: JobRecord) -> shapes.Job:
    return shapes.Job(**_job_fields(job))


def detail_view(job: JobRecord, attempts: Sequence[AttemptRecord], summary: dict[str, Any] | None) -> shapes.JobDetail:
    listed = tuple(attempt_view(attempt) for attempt in attempts)
    return shapes.JobDetail(**_job_fields(job), spec=job.spec, attempts=listed, summary=summary)


def _job_fields(job: JobRecord) -> dict[str, Any]:
    demand = shapes.JobDemand(workers=job.demand.workers, each=units(dict(job.demand.bundle)))
    attempt = None if job.attempt is None else attempt_view(job.attempt)
    return {name: getattr(job, name) for name in _AS_THEY_ARE} | {
        "state": job.state.value,
        "demand": demand,
        "attempt": attempt,
    }


def event_view(event: EventRecord) -> shapes.Event:
    return shapes.Event(
        seq=event.seq, t_ms=event.at_ms, job=event.job_id, project=event.project, kind=event.kind, fields=event.data
    )


def token_view(token: TokenRecord) -> shapes.Token:
    return shapes.Token(
        id=token.id,
        name=token.name,
        project=token.project,
        role=token.role,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms,
        revoked_ms=token.revoked_ms,
    )


def project_view(project: scheduling.Project) -> shapes.Project:
    return shapes.Project(
        name=project.name,
        pool=project.pool,
        weight=project.weight,
        quota=_quota_view(project.quota),
        preempt_within=project.preempt_within,
        reclaim=project.reclaim,
    )


def _quota_view(quota: scheduling.Quota | None) -> shapes.Quota | None:
    if quota is None:
        return None
    borrowing, lending = quota.borrowing_limit, quota.lending_limit
    return shapes.Quota(
        nominal=units(quota.nominal),
        borrowing_limit=None if borrowing is None else units(borrowing),
        lending_limit=None if lending is None else units(lending),
    )


def project_of(name: str, settings: shapes.ProjectSettings) -> scheduling.Project:
    quota = settings.quota
    return scheduling.Project(
        name=name,
        quota=None
        if quota is None
        else scheduling.Quota(
            nominal=scheduling.milli(quota.nominal),
            borrowing_limit=None if quota.borrowing_limit is None else scheduling.milli(quota.borrowing_limit),
            lending_limit=None if quota.lending_limit is None else scheduling.milli(quota.lending_limit),
        ),
        pool=settings.pool,
        weight=settings.weight,
        preempt_within=settings.preempt_within,
        reclaim=settings.reclaim,
    )


def model_view(model: ModelRecord, files: Sequence[Mapping[str, Any]] = ()) -> shapes.ModelVersion:
    listed = tuple(
        shapes.File(path=each["path"], bytes=int(each.get("bytes", 0)), sha256=each.get("sha256")) for each in files
    )
    return shapes.ModelVersion(
        project=model.project,
        name=model.name,
        version=model.version,
        aliases=model.aliases,
        job=model.job_id,
        artifact=model.artifact,
        spec_hash=model.spec_hash,
        dataset=model.data_fingerprint,
        lineage=model.lineage,
        measurement=model.measurement,
        files=listed,
        created_ms=model.created_ms,
    )
