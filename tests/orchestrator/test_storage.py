"""The stages that runs share: done once, whole or gone on from, claimed by one; what a full disk leaves."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_stages import SPEC, done, folders, perform, writes

from jobs.errors import SpecError, StorageError
from jobs.records import StageManifest
from jobs.storage import write_json
from orchestrator.runs import MANIFEST, Storage, stage_hash


class TestStages:
    def test_what_is_complete_is_not_done_again(self, storage: Storage) -> None:
        calls: list[Path] = []
        first, was_there = perform(storage, writes(calls=calls), lr=0.1)
        assert not was_there
        second, was_there = perform(storage, writes(calls=calls), lr=0.1)
        assert was_there
        assert first == second
        assert len(calls) == 1
        third, was_there = perform(storage, writes(calls=calls), lr=0.2)
        assert not was_there
        assert third is not None
        assert first is not None
        assert first.hash != third.hash

    def test_the_manifest_tells_what_is_there(self, storage: Storage) -> None:
        manifest = done(storage)
        folder = storage.stage(manifest.hash)
        assert [(file.path, file.bytes) for file in manifest.files] == [("model/weights.bin", 7)]
        assert manifest.result == {"metric": 0.5}
        assert manifest.versions["torch"]
        assert StageManifest.from_json(json.loads((folder / MANIFEST).read_text())) == manifest
        assert folders(storage) == {manifest.hash}

    def test_all_of_it_is_on_the_device_before_it_gets_its_name(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def flushed(descriptor: int) -> None:
            done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def renamed(path: Path, target: Path) -> Path:
            done.append("renamed")
            return rename(path, target)

        def do(folder: Path) -> dict[str, Any]:
            (folder / "model").mkdir()
            write_json(folder / "model" / "recipe.json", {}, durable=False)
            write_json(folder / "history.json", {}, durable=False)
            assert done == []
            return {}

        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(Path, "rename", renamed)
        manifest, _ = storage.perform("train", inputs={}, config={}, code="", schema_version=1, do=do)
        assert manifest is not None
        partial = storage.stage(manifest.hash).with_suffix(".partial")
        names = (".", "history.json", "manifest.json", "model", "model/recipe.json")
        before = done[: done.index("renamed")]
        assert sorted(before) == sorted(str(partial / name) for name in names)
        assert done[len(before) + 1 :] == [str(partial.parent)]

    def test_checkpoints_are_no_part_of_a_result(self, storage: Storage) -> None:
        def do(folder: Path) -> dict[str, Any]:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "1").write_text("x")
            return {}

        manifest = done(storage, do)
        assert manifest.files == ()
        assert not (storage.stage(manifest.hash) / "checkpoints").exists()

    def test_what_an_error_leaves_is_gone_on_from(self, storage: Storage) -> None:
        def breaks(folder: Path) -> None:
            (folder / "half").write_text("way")
            raise RuntimeError("power cut")

        def goes_on(folder: Path) -> dict[str, Any]:
            assert (folder / "half").read_text() == "way"
            return {}

        with pytest.raises(RuntimeError, match="power cut"):
            perform(storage, breaks)
        digest = stage_hash("train", inputs={"dataset": "d"}, config={}, code="", schema_version=1)
        assert storage.manifest(digest) is None
        assert folders(storage) == {f"{digest}.partial"}
        manifest, was_there = perform(storage, goes_on)
        assert manifest is not None
        assert not was_there
        assert folders(storage) == {digest}

    def test_an_early_stop_commits_nothing(self, storage: Storage) -> None:
        def stops(folder: Path) -> None:
            (folder / "half").write_text("way")

        assert perform(storage, stops) == (None, False)
        (partial,) = folders(storage)
        assert partial.endswith(".partial")
        assert not (storage.root / "stages" / partial / MANIFEST).exists()
        manifest = done(storage)
        assert {file.path for file in manifest.files} == {"half", "model/weights.bin"}

    def test_a_crash_before_the_rename_leaves_no_result(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The manifest is the last file to be written, and what is not renamed yet is not found."""
        seen: list[set[str]] = []

        def crash(self: Path, target: Path) -> None:
            seen.append({path.name for path in self.iterdir()})
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", crash)
            with pytest.raises(KeyboardInterrupt):
                perform(storage, writes())
        assert seen == [{"model", MANIFEST}]
        calls: list[Path] = []
        perform(storage, writes(calls=calls))
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / MANIFEST).write_text("{"),
            lambda folder: (folder / MANIFEST).write_text("[]"),
            lambda folder: (folder / MANIFEST).write_bytes(b"\xff"),
            lambda folder: (folder / MANIFEST).unlink(),
            lambda folder: (folder / "model" / "weights.bin").unlink(),
            lambda folder: (folder / "model" / "weights.bin").write_text("wei"),
        ],
        ids=["cut", "no manifest", "no text", "missing manifest", "missing file", "short file"],
    )
    def test_what_is_damaged_is_done_again(self, damage: Callable[[Path], None], storage: Storage) -> None:
        folder = storage.stage(done(storage).hash)
        damage(folder)
        calls: list[Path] = []
        manifest, was_there = perform(storage, writes(calls=calls))
        assert not was_there
        assert manifest is not None
        assert len(calls) == 1
        assert (folder / "model" / "weights.bin").read_text() == "weights"
        assert storage.manifest(manifest.hash) == manifest

    def test_the_address_tells_everything_apart(self) -> None:
        base: dict[str, Any] = {"inputs": {"a": "1"}, "config": {"x": 1, "y": 2}, "code": "", "schema_version": 1}
        changes: list[dict[str, Any]] = [
            {},
            {"inputs": {"a": "2"}},
            {"config": {"x": 1}},
            {"code": "c"},
            {"schema_version": 2},
        ]
        hashes = {stage_hash("train", **base | change) for change in changes} | {stage_hash("prune", **base)}
        assert len(hashes) == 6
        swapped = base | {"config": {"y": 2, "x": 1}}
        assert stage_hash("train", **swapped) == stage_hash("train", **base)

    def test_object_stores_are_refused(self) -> None:
        with pytest.raises(SpecError, match=r"--runs.*not supported yet"):
            Storage.at("s3://bucket/runs")


def work_slowly(root: Path, log: Path) -> None:
    def do(folder: Path) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return {"pid": os.getpid()}

    perform(Storage(root), do)


class TestClaims:
    def test_two_processes_do_a_stage_once(self, storage: Storage, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        log = tmp_path / "log"
        workers = [context.Process(target=work_slowly, args=(storage.root, log)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert len(log.read_text().split()) == 1

    def test_two_threads_do_a_stage_once(self, storage: Storage, tmp_path: Path) -> None:
        log = tmp_path / "log"
        threads = [threading.Thread(target=work_slowly, args=(storage.root, log)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(log.read_text().split()) == 1

    def test_a_claim_is_waited_for_only_so_long(self, storage: Storage) -> None:
        with storage.claim("abc"), pytest.raises(StorageError, match="another process"), storage.claim("abc", 0.1):
            pass
        with storage.claim("abc", 0.1):
            pass  # a claim ends with its block


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from jobs.errors import StorageError
from orchestrator.runs import Storage

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit is an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
storage = Storage(Path(sys.argv[1]))

def do(folder):
    (folder / "model.bin").write_bytes(b"x" * 200_000)
    return {}

def large_result(folder):
    return {"text": "x" * 200_000}

def log(run):
    for _ in range(1000):
        run.event("step", text="x" * 400)

(run,) = map(storage.find_run, storage.run_ids())
for what, attempt in {
    "stage": lambda: storage.perform("train", inputs={}, config={"full": 1}, code="", schema_version=1, do=do),
    "manifest": lambda: storage.perform("x", inputs={}, config={}, code="", schema_version=1, do=large_result),
    "events": lambda: log(run),
}.items():
    try:
        attempt()
    except StorageError as error:
        assert "what was complete before is intact" in str(error), error
        print(what)
"""


def test_a_full_disk_is_a_storage_error_and_harms_nothing(storage: Storage, tmp_path: Path) -> None:
    """A real limit on the size of files: the process that hits it writes a part, as on a full disk."""
    run = storage.create_run(SPEC)
    before = done(storage, lr=1)
    run.refer("train", before, reused=False)
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    ended = subprocess.run(
        [sys.executable, str(script), str(storage.root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["stage", "manifest", "events"]
    assert storage.manifest(before.hash) == before
    assert (storage.stage(before.hash) / "model" / "weights.bin").read_text() == "weights"
    assert [path.name for path in storage.root.rglob("*.tmp")] == []
    whole = [name for name in folders(storage) if not name.endswith(".partial")]
    assert whole == [before.hash]
    # With room again, all goes on: the events that fitted, and the next one.
    num_events = len(run.events())
    assert 0 < num_events < 1000
    run.event("finished")
    assert len(run.events()) == num_events + 1
    manifest, was_there = storage.perform(
        "train", inputs={}, config={"full": 1}, code="", schema_version=1, do=writes()
    )
    assert manifest is not None
    assert not was_there


def test_a_storage_that_vanishes_is_an_error_and_is_not_made_anew(storage: Storage, tmp_path: Path) -> None:
    run = storage.create_run(SPEC)
    run.event("started")
    storage.root.rename(tmp_path / "away")
    with pytest.raises(StorageError, match="the storage has vanished"):
        run.event("step", step=1)
    assert not storage.root.exists()
    (tmp_path / "away").rename(storage.root)
    run.event("step", step=2)
    assert [event["event"] for event in run.events()] == ["started", "step"]
