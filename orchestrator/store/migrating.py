"""Brings a database to the schema of this version, step by step, with Alembic."""

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from orchestrator.store.database import Database
from orchestrator.store.errors import StoreUnusable

_FOLDER = Path(__file__).parent / "migrations"
_ALEMBIC = threading.Lock()  # Alembic keeps what it works on in a module


def head() -> str:
    """The newest schema's number."""
    newest = ScriptDirectory(str(_FOLDER)).get_current_head()
    assert newest is not None
    return newest


def check_current(database: Database) -> None:
    """Raises StoreUnusable for a database whose schema is not this version's."""
    if (current := database.read(_current)) != head():
        what = f"schema {current}" if current else "no store"
        raise StoreUnusable(f"{database.name} has {what}, this version has schema {head()}: `thresher serve` upgrades")


def upgrade(database: Database, revision: str = "head") -> None:
    """Brings the schema to `revision`; one process at a time, all of it or nothing.

    Raises StoreUnusable for a schema that this version does not know: it was written by a newer one, which may keep
    promises that this one would break.
    """
    known = {script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions()}
    if revision == "head" and database.read(_current) == head():
        return

    def bring(connection: Connection) -> None:
        current = _current(connection)
        if current is not None and current not in known:
            raise StoreUnusable(
                f"{database.name} has schema {current}, which this version does not know (its newest is {head()}): "
                "it was written by a newer version of Thresher; run that one"
            )
        if current is None and inspect(connection).get_table_names():
            raise StoreUnusable(f"{database.name} holds tables that are not Thresher's: give it a database of its own")
        config = Config()
        config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    with _ALEMBIC:
        database.locked(bring)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
