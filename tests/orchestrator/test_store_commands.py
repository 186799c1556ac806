"""`thresher store backup` and `prune`, as a person calls them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.errors import ThresherError
from orchestrator.cli import app
from orchestrator.store import JobFilter, Store, StoreUnusable
from orchestrator.store.migrating import upgrade
from orchestrator.store.store import Database
from tests.orchestrator.store.small_jobs import new


def call(*words: str) -> Any:
    done = CliRunner().invoke(app, ["store", *words, "--json"], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.output)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with Store.open(f"sqlite:///{tmp_path}/runs/thresher.db") as store:
        job, _ = store.submit_job(new(id="old"))
        store.request_cancel(job.id, "ada")
    return tmp_path / "runs"


def test_a_backup_while_somebody_writes(runs: Path, tmp_path: Path):
    with Store.open(f"sqlite:///{runs}/thresher.db") as service:
        service.submit_job(new(id="newest"))  # in the WAL alone
        said = call("backup", str(tmp_path / "copy.db"), "--runs", str(runs))
        service.submit_job(new(id="later"))
    assert said["bytes"] == (tmp_path / "copy.db").stat().st_size > 0
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    with Store.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        assert {job.id for job in copy.list_jobs(JobFilter()).items} == {"old", "newest"}


def test_what_a_backup_refuses(runs: Path, tmp_path: Path):
    (tmp_path / "there.db").write_text("precious")
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "others.db")) as others:
        others.execute("CREATE TABLE theirs (x)")
    for words, fault in [
        ((str(tmp_path / "there.db"), "--runs", str(runs)), "exists already"),
        ((str(tmp_path / "no" / "copy.db"), "--runs", str(runs)), "no such folder"),
        ((str(tmp_path / "copy.db"), "--runs", str(tmp_path / "nowhere")), "there is no store"),
        ((str(tmp_path / "copy.db"), "--store", "postgresql://me@nowhere/db"), "use pg_dump"),
        *[
            ((str(tmp_path / "copy.db"), "--store", f"sqlite:///{tmp_path}/{name}.db"), "is no store of Thresher's")
            for name in ("there", "empty", "others")
        ],
    ]:
        with pytest.raises(ThresherError, match=fault) as refused:
            call("backup", *words)
        assert refused.value.exit_code == 2
    assert (tmp_path / "there.db").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "empty.db").read_bytes() == b""
    assert not list(tmp_path.glob("copy.db*"))


def test_pruning_takes_modules_and_logs_along(runs: Path, monkeypatch: pytest.MonkeyPatch):
    kept = runs / ".service" / "jobs" / "other"
    for folder in (runs / ".service" / "jobs" / "old" / "code", kept):
        folder.mkdir(parents=True)
    assert call("prune", "--older-than", "1d", "--runs", str(runs))["jobs"] == []
    now_ms = Store.now_ms
    monkeypatch.setattr(Store, "now_ms", lambda store: now_ms(store) + 2 * 86_400_000)
    dry = call("prune", "--older-than", "1d", "--runs", str(runs), "--dry-run")
    assert (runs / ".service" / "jobs" / "old").exists()
    done = call("prune", "--older-than", "1d", "--runs", str(runs))
    assert done == dry | {"dry_run": False}
    assert (done["jobs"], done["runs"], done["events"]) == (["old"], ["old"], 2)
    assert kept.exists()
    assert not (runs / ".service" / "jobs" / "old").exists()


@pytest.mark.parametrize("age", ["90", "0d", "d", "1w", "-1d"])
def test_ages(age: str, runs: Path):
    with pytest.raises(ThresherError, match="no number of days"):
        call("prune", f"--older-than={age}", "--runs", str(runs))


def test_a_store_of_another_version_is_backed_up_and_not_pruned(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/thresher.db"
    database = Database(url)
    upgrade(database, "0001")
    database.close()
    with pytest.raises(StoreUnusable, match="0001"):
        call("prune", "--older-than", "1d", "--store", url)
    call("backup", str(tmp_path / "copy.db"), "--store", url)
    with pytest.raises(StoreUnusable, match="0001"):
        Store.existing(f"sqlite:///{tmp_path}/copy.db")
