"""Schemas: from an older one to the newest; a newer one is refused; the tables are what is migrated to."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from jobs.errors import SpecError
from orchestrator.store import Store, StoreUnusable, migrating
from orchestrator.store.database import Database
from orchestrator.store.tables import metadata

from .small_jobs import new


def test_the_migrations_lead_to_the_tables(store: Store):
    difference = store.database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata))
    assert difference == []


def test_an_older_store_is_brought_up_with_what_it_holds(url: str):
    database = Database(url)
    migrating.upgrade(database, "0001")
    store = Store(database)
    job, _ = store.submit_job(new(), "key")
    store.close()
    with Store.open(url) as upgraded:
        assert upgraded.job(job.id) == job
        assert upgraded.submit_job(new(), "key") == (job, False)
        assert upgraded.models() == []


def test_a_newer_store_is_refused(store: Store, url: str):
    store.database.write(lambda t: t.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnusable, match=r"9999.*newer version"):
        Store.open(url)


def test_what_is_no_store_is_refused(tmp_path: Path):
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreUnusable, match="not a database"):
        Store.open(f"sqlite:///{damaged}")
    for address in ("mysql://x/y", "sqlite://", "no address"):
        with pytest.raises(SpecError, match="--store"):
            Store.open(address)


def test_a_backup_is_a_store(tmp_path: Path):
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        job, _ = store.submit_job(new())
        store.backup(tmp_path / "b.db")
        with pytest.raises(SpecError, match="exists already"):
            store.backup(tmp_path / "b.db")
    with Store.open(f"sqlite:///{tmp_path}/b.db") as copy:
        assert copy.job(job.id) == job
