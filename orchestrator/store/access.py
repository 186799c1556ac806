"""Projects with their quotas, and bearer tokens, of which only a digest is kept."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from orchestrator.scheduling import Project
from orchestrator.store import rows
from orchestrator.store.database import Database, Transaction
from orchestrator.store.errors import Conflict, NotFound
from orchestrator.store.records import Role, TokenRecord
from orchestrator.store.tables import counters, jobs, projects, tokens

_PREFIX = "thr"


def put_project(transaction: Transaction, project: Project) -> Project:
    values = rows.project_values(project)
    connection = transaction.connection
    changed = connection.execute(update(projects).where(projects.c.name == project.name).values(**values))
    if not changed.rowcount:
        connection.execute(insert(projects).values(**values, created_ms=transaction.now_ms))
    transaction.event("project", project=project.name, **values)
    return project


def delete_project(transaction: Transaction, name: str) -> None:
    """Its tokens are revoked with it; its finished jobs and its models stay."""
    connection = transaction.connection
    held = select(projects.c.name).where(projects.c.name == name).with_for_update()
    if connection.scalar(held) is None:
        raise NotFound(f"there is no project {name!r}")
    live = connection.scalar(
        select(func.count()).select_from(jobs).where(jobs.c.project == name, jobs.c.ended_ms.is_(None))
    )
    if live:
        raise Conflict(f"project {name} has {live} jobs that have not ended")
    mine = (tokens.c.project == name) & tokens.c.revoked_ms.is_(None)
    connection.execute(update(tokens).where(mine).values(revoked_ms=transaction.now_ms))
    connection.execute(delete(projects).where(projects.c.name == name))
    transaction.event("project", project=name, deleted=True)


@dataclass(frozen=True)
class NewToken:
    """What a new token is made of, drawn before the transaction so that it may be tried twice.

    The secret is `thr_ID_RANDOM`: the id finds the row, so that what is compared in constant time is one digest.
    """

    id: str
    secret: str

    @classmethod
    def draw(cls) -> "NewToken":
        name = secrets.token_hex(6)
        return cls(name, f"{_PREFIX}_{name}_{secrets.token_urlsafe(32)}")


def create_token(
    transaction: Transaction, new: NewToken, project: str | None, role: Role, name: str, expires_ms: int | None
) -> TokenRecord:
    connection = transaction.connection
    known = connection.execute(select(tokens).where(tokens.c.id == new.id)).first()
    if known is not None:
        return rows.token(known)
    if project is not None:
        held = select(projects.c.name).where(projects.c.name == project).with_for_update(read=True)
        if connection.scalar(held) is None:
            raise NotFound(f"there is no project {project!r}")
    values = {"id": new.id, "name": name, "project": project, "role": role, "expires_ms": expires_ms}
    values |= {"digest": _digest(new.secret), "created_ms": transaction.now_ms}
    connection.execute(insert(tokens).values(**values))
    transaction.event("token", project=project, token=new.id, name=name, role=role)
    return rows.token(connection.execute(select(tokens).where(tokens.c.id == new.id)).one())


def first_token(transaction: Transaction, new: NewToken, name: str) -> TokenRecord | None:
    """An admin of everything, if there has never been a token."""
    connection = transaction.connection
    # Two services that start at once on a new database: the second one waits here, and then sees the first one's.
    connection.execute(select(counters.c.value).where(counters.c.name == "events").with_for_update())
    others = connection.scalar(select(func.count()).select_from(tokens).where(tokens.c.id != new.id))
    return None if others else create_token(transaction, new, None, "admin", name, None)


def by_secret(database: Database, connection: Connection, secret: str) -> TokenRecord | None:
    """The token, unless it is revoked or has expired. A wrong secret takes as long as a right one."""
    parts = secret.split("_", 2)
    name = parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""
    row = connection.execute(select(tokens, database.clock.label("now_ms")).where(tokens.c.id == name)).first()
    expected = _digest("") if row is None else row.digest
    if not hmac.compare_digest(_digest(secret), expected) or row is None or row.revoked_ms is not None:
        return None
    if row.expires_ms is not None and row.expires_ms <= row.now_ms:
        return None
    return rows.token(row)


def revoke(transaction: Transaction, token_id: str) -> TokenRecord:
    connection = transaction.connection
    row = connection.execute(select(tokens).where(tokens.c.id == token_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"there is no token {token_id}")
    if row.revoked_ms is None:
        connection.execute(update(tokens).where(tokens.c.id == token_id).values(revoked_ms=transaction.now_ms))
        transaction.event("token", project=row.project, token=token_id, name=row.name, revoked=True)
    return rows.token(connection.execute(select(tokens).where(tokens.c.id == token_id)).one())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
