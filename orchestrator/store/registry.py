"""The model registry: versions that never change, and aliases that may move."""

import re
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select, tuple_, update

from jobs.errors import SpecError
from orchestrator.store import rows
from orchestrator.store.database import Transaction
from orchestrator.store.errors import NotFound
from orchestrator.store.records import JobRecord, ModelRecord, NewModel
from orchestrator.store.tables import aliases, counters, models

_ALIAS = re.compile(r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")


def record(transaction: Transaction, job: JobRecord, new: Sequence[NewModel]) -> None:
    """Gives each artifact the next version of its name; one that the job has registered before keeps its own."""
    if not new:
        return
    connection = transaction.connection
    _one_at_a_time(transaction)
    for model in new:
        known = (models.c.job_id == job.id) & (models.c.artifact == model.artifact)
        if connection.scalar(select(models.c.version).where(known)) is not None:
            continue
        same = (models.c.project == job.project) & (models.c.name == model.name)
        version = (connection.scalar(select(func.max(models.c.version)).where(same)) or 0) + 1
        values = {"project": job.project, "name": model.name, "version": version, "job_id": job.id}
        values |= {"artifact": model.artifact, "path": model.path, "spec_hash": model.spec_hash}
        values |= {"data_fingerprint": model.data_fingerprint, "created_ms": transaction.now_ms}
        values |= {"lineage": dict(model.lineage), "measurement": dict(model.measurement)}
        connection.execute(insert(models).values(**values))
        told = {"name": model.name, "version": version, "artifact": model.artifact}
        transaction.event("model", project=job.project, job_id=job.id, **told)


def listed(connection: Connection, project: str | None, name: str | None, job_id: str | None) -> list[ModelRecord]:
    """By project and name, newest version first."""
    query = select(models).order_by(models.c.project, models.c.name, models.c.version.desc())
    for column, value in ((models.c.project, project), (models.c.name, name), (models.c.job_id, job_id)):
        if value is not None:
            query = query.where(column == value)
    found = connection.execute(query).all()
    names = defaultdict(list)
    keys = {(row.project, row.name) for row in found}
    given = select(aliases).where(tuple_(aliases.c.project, aliases.c.name).in_(keys)).order_by(aliases.c.alias)
    for row in connection.execute(given) if keys else ():
        names[row.project, row.name, row.version].append(row.alias)
    return [rows.model(row, tuple(names[row.project, row.name, row.version])) for row in found]


def one(connection: Connection, project: str, name: str, reference: int | str) -> ModelRecord | None:
    """By its version, or by an alias. A text of digits is a version."""
    version: int | None
    if isinstance(reference, int) or reference.isdecimal():
        version = int(reference)
    else:
        where = (aliases.c.project == project) & (aliases.c.name == name) & (aliases.c.alias == reference)
        version = connection.scalar(select(aliases.c.version).where(where))
    where = (models.c.project == project) & (models.c.name == name) & (models.c.version == version)
    row = connection.execute(select(models).where(where)).first() if version is not None else None
    if row is None:
        return None
    given = (aliases.c.project == project) & (aliases.c.name == name) & (aliases.c.version == version)
    names = connection.scalars(select(aliases.c.alias).where(given).order_by(aliases.c.alias))
    return rows.model(row, tuple(names))


def set_alias(transaction: Transaction, project: str, name: str, alias: str, version: int) -> ModelRecord:
    if not _ALIAS.match(alias):
        raise SpecError.at("alias", "not a name for a version", alias, "a letter, then letters, digits, . _ -")
    connection = transaction.connection
    _one_at_a_time(transaction)
    if one(connection, project, name, version) is None:
        raise NotFound(f"there is no model {name} version {version} in project {project}")
    where = (aliases.c.project == project) & (aliases.c.name == name) & (aliases.c.alias == alias)
    old = connection.scalar(select(aliases.c.version).where(where))
    values = {"version": version, "updated_ms": transaction.now_ms}
    if old is None:
        connection.execute(insert(aliases).values(project=project, name=name, alias=alias, **values))
    elif old != version:
        connection.execute(update(aliases).where(where).values(**values))
    if old != version:
        transaction.event("alias", project=project, name=name, alias=alias, old=old, new=version)
    record = one(connection, project, name, version)
    assert record is not None
    return record


def delete_alias(transaction: Transaction, project: str, name: str, alias: str) -> None:
    """The version stays. An alias that is not there is no error: it is as wanted."""
    where = (aliases.c.project == project) & (aliases.c.name == name) & (aliases.c.alias == alias)
    old = transaction.connection.execute(delete(aliases).where(where).returning(aliases.c.version)).first()
    if old is not None:
        transaction.event("alias", project=project, name=name, alias=alias, old=old.version, new=None)


def _one_at_a_time(transaction: Transaction) -> None:
    """Versions are counted up: who does so, or moves an alias, waits for the one before."""
    transaction.connection.execute(select(counters.c.value).where(counters.c.name == "models").with_for_update())
