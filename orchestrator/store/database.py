"""The connection to a database: transactions that are tried again, the database's clock, and what its errors mean.

Everything that differs between SQLite and PostgreSQL is here.
"""

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Connection, Engine, create_engine, event, exc, insert, literal_column, select, update
from sqlalchemy.engine import URL, make_url

from jobs.errors import SpecError
from orchestrator.store import tables
from orchestrator.store.errors import Conflict, StoreUnavailable, StoreUnusable

logger = logging.getLogger(__name__)

R = TypeVar("R")

BUSY_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 5
_PAUSES_S = (0.02, 0.1, 0.4)
"""Between the tries of a transaction. Who waits longer than this does so outside, with its own patience."""
_MODE_POLL_S = 0.01
"""Between two tries to set the mode of a new file."""
_FORMS = "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"

# The clock moves within a transaction too: on PostgreSQL now() would be the time of its begin.
_CLOCKS = {
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNIQUE_VIOLATION = "23505"
_READ_ONLY_SERVER = "25006"  # the other side of a fail-over


@dataclass
class Transaction:
    """An open transaction that writes. Its events are written last, since numbering them holds a lock."""

    connection: Connection
    now_ms: int
    _events: list[dict[str, Any]] = field(default_factory=list)

    def event(self, kind: str, *, project: str | None, job_id: str | None = None, **data: Any) -> None:
        """Notes what happened; it is stored if and only if the transaction is."""
        row = {"at_ms": self.now_ms, "kind": kind, "project": project, "job_id": job_id, "data": data}
        self._events.append(row)

    def write_events(self) -> None:
        if not self._events:
            return
        counted = tables.counters.c
        last = self.connection.scalar(
            update(tables.counters)
            .where(counted.name == "events")
            .values(value=counted.value + len(self._events))
            .returning(counted.value)
        )
        if last is None:
            raise StoreUnusable("the store has no counter of events")
        first = last - len(self._events) + 1
        self.connection.execute(
            insert(tables.events), [{"seq": first + i, **row} for i, row in enumerate(self._events)]
        )


class Database:
    """A pool of connections.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://…`. Raises SpecError for others.
        make: makes the file of SQLite. False: raises SpecError where there is none.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        self.url = _checked(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and not make and not Path(str(self.url.database)).is_file():
            raise SpecError.at("--store", "there is no store", str(self.url.database), _FORMS)
        self.clock = literal_column(_CLOCKS[self.url.get_backend_name()], BigInteger)
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgresql_engine(self.url)
        # SQLite has one writer at a time and lets the others poll. Within a process they stand in line instead.
        self._line = threading.Lock()

    @property
    def name(self) -> str:
        """The address without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self.engine.dispose()

    def read(self, work: Callable[[Connection], R]) -> R:
        """Runs `work` in a transaction that writes nothing. Raises StoreUnavailable."""
        return self._tried(lambda: self._reading(work))

    def write(self, work: Callable[[Transaction], R]) -> R:
        """Runs `work` in a transaction and commits it. Raises StoreUnavailable.

        `work` is run again when the connection broke, even at the commit, where nobody can tell whether it happened:
        it must find its own effect and leave it at that.
        """
        return self._tried(lambda: self._writing(work))

    def locked(self, work: Callable[[Connection], R]) -> R:
        """Runs `work` in a transaction beside which no other one writes, whichever process it is of."""

        def whole(transaction: Transaction) -> R:
            if not self.is_sqlite:
                transaction.connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7467733, 1)")
            return work(transaction.connection)

        return self.write(whole)

    def _reading(self, work: Callable[[Connection], R]) -> R:
        with self.engine.connect() as connection:
            return work(connection)

    def _writing(self, work: Callable[[Transaction], R]) -> R:
        with self._turn(), self.engine.connect() as connection:
            connection = connection.execution_options(thresher_writes=True)
            with connection.begin():
                now_ms = connection.scalar(select(self.clock))
                assert now_ms is not None
                transaction = Transaction(connection, now_ms)
                result = work(transaction)
                transaction.write_events()
            return result

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._line.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreUnavailable(f"{self.name}: the writers before this one took more than {BUSY_TIMEOUT_S:.0f} s")
        try:
            yield
        finally:
            self._line.release()

    def _tried(self, attempt: Callable[[], R]) -> R:
        for pause_s in (*_PAUSES_S, None):
            try:
                return attempt()
            except (exc.DBAPIError, exc.TimeoutError) as error:
                second = _came_second(error)
                away = _is_away(error)
                if not (away or second):
                    raise self._unusable(error) from error
                if pause_s is None or (self.is_sqlite and away):
                    if second:
                        raise Conflict(f"{self.name}: somebody else was first ({_first_line(error)})") from error
                    raise StoreUnavailable(f"{self.name} does not answer: {_first_line(error)}") from error
                logger.debug("tried again: %s", error)
                time.sleep(pause_s * (0.5 + random.random()))
        raise AssertionError("the last try returns or raises")

    def _unusable(self, error: exc.SQLAlchemyError) -> Exception:
        original = getattr(error, "orig", None)
        if isinstance(original, sqlite3.DatabaseError) and _sqlite_code(original) in _SQLITE_DAMAGED:
            return StoreUnusable(f"{self.name}: {original}")
        return error


def _is_away(error: exc.DBAPIError | exc.TimeoutError) -> bool:
    """Whether the same may work later: no connection, a lost one, a lock that was not had, a deadlock."""
    if isinstance(error, exc.TimeoutError):
        return True
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_code(original) in _SQLITE_AWAY
    if error.connection_invalidated or getattr(original, "sqlstate", None) == _READ_ONLY_SERVER:
        return True
    return isinstance(error, exc.OperationalError | exc.InterfaceError)


def _came_second(error: exc.DBAPIError | exc.TimeoutError) -> bool:
    """Whether another transaction has put in the same key meanwhile: the next try will see it."""
    original = error.orig if isinstance(error, exc.IntegrityError) else None
    if isinstance(original, sqlite3.Error):
        return original.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return getattr(original, "sqlstate", None) == _UNIQUE_VIOLATION


def _sqlite_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_no_store(error: sqlite3.Error) -> bool:
    """Whether the file is damaged, no database, or lacks the tables that were asked for."""
    return _sqlite_code(error) in _SQLITE_DAMAGED | {sqlite3.SQLITE_ERROR}


def _first_line(error: exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _checked(text: str) -> URL:
    try:
        url = make_url(text)
    except exc.ArgumentError:
        raise SpecError.at("--store", "this is no database address", allowed=_FORMS) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise SpecError.at("--store", "not supported: this kind of database", url.drivername, _FORMS)
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise SpecError.at("--store", "a store outlives its process: it needs a file", text, _FORMS)
    return url


def _sqlite_engine(url: URL) -> Engine:
    path = Path(str(url.database)).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only its owner reads it; SQLite gives the files that it lays beside it the same rights.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise SpecError.at("--store", f"the file cannot be opened: {error.strerror}", str(path), _FORMS) from None
    engine = create_engine(
        url.set(database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=8,
        max_overflow=32,
        pool_timeout=BUSY_TIMEOUT_S,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver's guess
        _write_ahead(connection)
        for setting in ("synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail where another one wrote in between.
        writes = connection.get_execution_options().get("thresher_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Gives a new file its journal's mode. SQLite does not wait by itself where several processes are the first."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_MODE_POLL_S)


def _postgresql_engine(url: URL) -> Engine:
    settings = {
        "application_name": "thresher",
        "statement_timeout": "30s",
        "lock_timeout": "15s",
        "idle_in_transaction_session_timeout": "60s",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return create_engine(
        url,
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "options": options, "tcp_user_timeout": 15_000},
        pool_size=8,
        max_overflow=32,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_pre_ping=True,
    )
