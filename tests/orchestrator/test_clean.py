"""`thresher clean`: what runs refer to stays, the rest goes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_stages import SPEC, done

from jobs.errors import StorageError
from orchestrator.runs import MANIFEST, Storage


class TestClean:
    @staticmethod
    def dataset(storage: Storage, name: str) -> Path:
        folder = storage.datasets / name
        folder.mkdir(parents=True)
        (folder / "train.arrow").write_bytes(b"x" * 100)
        (folder / "dataset.json").write_text("{}")
        return folder

    def test_what_runs_refer_to_stays_and_the_rest_goes(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        kept, noted, planned, lost = (done(storage, lr=lr) for lr in (1, 2, 3, 4))
        run.refer("train", kept, reused=False)
        run.event("stage", stage="prune", stage_hash=noted.hash)
        (run.folder / "plan.json").write_text(json.dumps({"hashes": {"train": planned.hash, "code": ""}}))
        used, unused = self.dataset(storage, "a" * 64), self.dataset(storage, "b" * 64)
        run.event("prepared", dataset=used.name)
        (storage.stage("c" * 32).with_suffix(".partial")).mkdir()
        storage.stage(planned.hash).rename(storage.stage(planned.hash).with_suffix(".partial"))
        (run.folder / "report.json").write_text("{}")

        before = sorted(storage.root.rglob("*"))
        victims, size = storage.clean(dry_run=True)
        expected = {storage.stage(lost.hash), unused, storage.stage("c" * 32).with_suffix(".partial")}
        assert set(victims) == expected
        assert size > 100
        assert [path for path in before if not path.exists()] == []

        assert storage.clean(dry_run=False) == (victims, size)
        assert not any(path.exists() for path in expected)
        assert storage.manifest(kept.hash) == kept
        assert storage.manifest(noted.hash) == noted
        assert storage.stage(planned.hash).with_suffix(".partial").is_dir()
        assert (used / "dataset.json").exists()
        assert storage.find_run(run.id).events()
        assert storage.clean(dry_run=False) == ([], 0)

    def test_deleting_a_run_frees_what_it_alone_used(self, storage: Storage) -> None:
        first, second = storage.create_run(SPEC), storage.create_run(SPEC)
        shared, own = done(storage, lr=1), done(storage, lr=2)
        for run in (first, second):
            run.refer("train", shared, reused=run is second)
        first.refer("prune", own, reused=False)
        for run in (first, second):
            (run.folder / "report.json").write_text("{}")
        assert storage.clean(dry_run=False) == ([], 0)
        for path in sorted(first.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        first.folder.rmdir()
        victims, _ = storage.clean(dry_run=False)
        assert victims == [storage.stage(own.hash)]
        assert storage.manifest(shared.hash) == shared

    def test_what_was_made_since_an_unfinished_run_began_stays(self, storage: Storage) -> None:
        before = done(storage, lr=1)
        os.utime(storage.stage(before.hash), (0, 0))
        run = storage.create_run(SPEC)
        trial = done(storage, lr=2)  # of a search that was broken off: nothing refers to it yet
        victims, _ = storage.clean(dry_run=False)
        assert victims == [storage.stage(before.hash)]
        (run.folder / "report.json").write_text("{}")
        assert storage.clean(dry_run=False)[0] == [storage.stage(trial.hash)]

    def test_what_is_worked_on_stays(self, storage: Storage) -> None:
        seen: list[Any] = []

        def do(folder: Path) -> dict[str, Any]:
            seen.append(storage.clean(dry_run=False))
            assert folder.exists()
            return {}

        done(storage, do)
        assert seen == [([], 0)]

    def test_a_run_that_cannot_be_read_stops_the_clean(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        manifest = done(storage)
        run.refer("train", manifest, reused=False)
        (run.folder / "stages" / "train" / MANIFEST).write_text("{")
        with pytest.raises(StorageError, match=run.id):
            storage.clean(dry_run=False)
        assert storage.manifest(manifest.hash) == manifest

    def test_an_empty_storage(self, storage: Storage) -> None:
        assert storage.clean(dry_run=False) == ([], 0)
        assert not storage.root.exists()

    def test_what_a_resumed_run_made_is_not_called_reused(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        manifest = done(storage)
        path = run.folder / "stages" / "train" / MANIFEST
        run.refer("train", manifest, reused=False)
        run.refer("train", manifest, reused=True)
        assert json.loads(path.read_text())["reused"] is False
        run.refer("train", done(storage, lr=2), reused=True)
        assert json.loads(path.read_text())["reused"] is True
