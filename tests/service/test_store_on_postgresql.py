"""The tests of the store once more, on a real PostgreSQL; and what only a server can do: go away."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from orchestrator.store import JobFilter, Lease, Store, StoreUnavailable
from tests.orchestrator.store import (
    test_access,
    test_concurrency,
    test_migrating,
    test_processes,
    test_pruning,
    test_reconciling,
    test_submitting,
)
from tests.orchestrator.store.machine import StoreMachine
from tests.orchestrator.store.small_jobs import new
from tests.orchestrator.store.test_machine import check
from tests.service.postgresql import address, running_server

for _module in (
    test_access,
    test_concurrency,
    test_migrating,
    test_processes,
    test_pruning,
    test_reconciling,
    test_submitting,
):
    globals().update({name: value for name, value in vars(_module).items() if name.startswith("test_")})

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    with running_server() as socket:
        yield socket


def new_database(server: Path, template: str = "template1") -> str:
    name = f"t{next(_numbers)}"
    with psycopg.connect(f"host={server} user=thresher dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return address(server, name)


@pytest.fixture
def url(server: Path) -> str:
    return new_database(server)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as store:
        yield store


@pytest.fixture
def lease(store: Store) -> Lease:
    lease = store.acquire_lease("tests", 60)
    assert lease is not None
    return lease


def test_the_store_is_its_model(server: Path, store: Store):
    template = str(store.database.url.database)
    store.close()  # who is copied must be alone

    class OnPostgresql(StoreMachine):
        @staticmethod
        def fresh() -> str:
            return new_database(server, template)

    check(OnPostgresql, examples=6, steps=40, seeded=True)


def test_a_dropped_connection_is_made_again(store: Store, server: Path):
    first, _ = store.submit_job(new(), "key")
    with psycopg.connect(f"host={server} user=thresher dbname=postgres", autocommit=True) as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
        connection.execute(others, (store.database.url.database,))
    assert store.submit_job(new(), "key") == (first, False)
    assert len(store.list_jobs(JobFilter()).items) == 1


def test_no_server_is_unavailable(tmp_path: Path):
    with pytest.raises(StoreUnavailable, match="does not answer"):
        Store.open(address(tmp_path, "x"))
