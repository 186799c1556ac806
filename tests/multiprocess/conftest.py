"""One set of gloo ranks, shared by all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multiprocess.cells import prepared
from tests.multiprocess.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    shared = Ranks(8)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("parity"))
