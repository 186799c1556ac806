"""Rows of the tables as records, and back."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, select
from sqlalchemy.sql.selectable import Select

from orchestrator.scheduling import Demand, Project, Quota
from orchestrator.store.records import AttemptRecord, EventRecord, JobRecord, ModelRecord, TokenRecord
from orchestrator.store.states import AttemptState, JobState
from orchestrator.store.tables import attempts, jobs

_HIDDEN = ("num_attempts", "idempotency_key", "body_digest")
_JOB = [column for column in jobs.c if column.name not in _HIDDEN]
_ATTEMPT = [column for column in attempts.c if column.name != "epoch"]


def select_jobs(*where: ColumnElement[bool]) -> Select[Any]:
    """Jobs, each with its newest attempt: what `job` reads."""
    newest = and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.num_attempts)
    return select(*_JOB, *_ATTEMPT).select_from(jobs.outerjoin(attempts, newest)).where(*where)


def select_attempts(*where: ColumnElement[bool]) -> Select[Any]:
    return select(*_ATTEMPT).where(*where)


def job(row: Row[Any]) -> JobRecord:
    values = {column.name: value for column, value in zip(_JOB, row, strict=False)}
    own = row[len(_JOB) :]
    values["state"] = JobState(values["state"])
    values["demand"] = demand_from(values["demand"])
    values["claim"] = None if values["claim"] is None else tuple(values["claim"])
    values["failures"] = tuple(values["failures"])
    return JobRecord(**values, attempt=None if own[0] is None else attempt(own))


def attempt(row: Row[Any] | tuple[Any, ...]) -> AttemptRecord:
    values = {column.name: value for column, value in zip(_ATTEMPT, row, strict=True)}
    values["state"] = AttemptState(values["state"])
    values["placement"] = tuple(values["placement"])
    return AttemptRecord(**values)


def event(row: Row[Any]) -> EventRecord:
    return EventRecord(row.seq, row.at_ms, row.kind, row.project, row.job_id, row.data)


def token(row: Row[Any]) -> TokenRecord:
    return TokenRecord(row.id, row.name, row.project, row.role, row.created_ms, row.expires_ms, row.revoked_ms)


def model(row: Row[Any], aliases: tuple[str, ...]) -> ModelRecord:
    return ModelRecord(**row._mapping, aliases=aliases)


def project(row: Row[Any]) -> Project:
    quota = None
    if row.quota is not None:
        quota = Quota(row.quota["nominal"], row.quota["borrowing_limit"], row.quota["lending_limit"])
    return Project(row.name, quota, row.pool, row.weight, row.preempt_within, row.reclaim)


def project_values(project: Project) -> dict[str, Any]:
    return {
        "name": project.name,
        "quota": None if project.quota is None else quota_document(project.quota),
        "pool": project.pool,
        "weight": project.weight,
        "preempt_within": project.preempt_within,
        "reclaim": project.reclaim,
    }


def quota_document(quota: Quota) -> dict[str, Any]:
    """As JSON: amounts in thousandths; None stands for no limit."""

    def whole(amounts: Mapping[str, int] | None) -> dict[str, int] | None:
        return None if amounts is None else dict(amounts)

    return {
        "nominal": whole(quota.nominal),
        "borrowing_limit": whole(quota.borrowing_limit),
        "lending_limit": whole(quota.lending_limit),
    }


def demand_document(demand: Demand) -> dict[str, Any]:
    return {"workers": demand.workers, "bundle": [list(amount) for amount in demand.bundle]}


def demand_from(document: Mapping[str, Any]) -> Demand:
    return Demand(document["workers"], tuple((name, amount) for name, amount in document["bundle"]))
