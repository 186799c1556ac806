from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import Lease, Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/thresher.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as store:
        yield store


@pytest.fixture
def lease(store: Store) -> Lease:
    lease = store.acquire_lease("tests", 60)
    assert lease is not None
    return lease
