"""Stores for tests that are about something else: the migrations are gone through once a process, not once a test."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from orchestrator.store import Store


def new_store(file: Path) -> Store:
    """Opens what `Store.open` makes where nothing is: test_migrating.py holds both to the same."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.write_bytes(_empty())
    return Store.open(f"sqlite:///{file}")


@cache
def _empty() -> bytes:
    """An SQLite store of this version's schema that nothing was written to."""
    folder = Path(tempfile.mkdtemp(prefix="thresher-store-"))
    try:
        Store.open(f"sqlite:///{folder}/empty.db").close()
        assert [path.name for path in folder.iterdir()] == ["empty.db"]  # all of it is in the file itself
        return (folder / "empty.db").read_bytes()
    finally:
        shutil.rmtree(folder)
