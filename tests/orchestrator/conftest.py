"""A storage that nothing is in yet."""

from pathlib import Path

import pytest

from orchestrator.runs import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "runs")
