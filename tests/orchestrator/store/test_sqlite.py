"""What only SQLite has: a file, its rights, and a journal whose mode the first connection sets."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.store import JobFilter, Store
from orchestrator.store.database import Database

from .new_store import new_store


def test_the_stores_of_other_tests_are_as_if_opened_anew(store: Store, tmp_path: Path):
    with new_store(tmp_path / "other.db") as other:
        for query in ("SELECT type, name, sql FROM sqlite_master ORDER BY name", "PRAGMA journal_mode"):
            rows = [each.database.read(lambda c: c.exec_driver_sql(query).all()) for each in (store, other)]  # noqa: B023
            assert rows[0] == rows[1]
        assert other.list_jobs(JobFilter()).items == store.list_jobs(JobFilter()).items == ()
        assert (tmp_path / "other.db").stat().st_mode == (tmp_path / "thresher.db").stat().st_mode


def test_the_first_connections_to_a_new_file_do_not_fail_one_another(tmp_path: Path):
    number, files = 4, 60  # SQLite, left alone, fails some three of these
    together = threading.Barrier(number)

    def connect(path: Path) -> str:
        database = Database(f"sqlite:///{path}")
        together.wait()
        try:
            with database.engine.connect() as connection:
                return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        finally:
            database.engine.dispose()

    with ThreadPoolExecutor(number) as threads:
        for file in range(files):
            assert list(threads.map(connect, [tmp_path / f"{file}.db"] * number)) == ["wal"] * number
