"""The storage and the run directory: what is whole, what is reused, what is kept, and a disk that is full."""

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

from jobs.errors import SpecError, StorageError
from jobs.records import StageManifest
from jobs.spec import JobSpec
from orchestrator.runs import MANIFEST, Run, Storage, read_lines, stage_hash

SPEC = JobSpec.parse(
    {"name": "small", "data": {"source": {"kind": "builtin", "name": "digits"}}, "model": {"name": "lenet"}}
)
Do = Callable[[Path], dict[str, Any] | None]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "runs")


def perform(storage: Storage, do: Do, **config: Any) -> tuple[StageManifest | None, bool]:
    return storage.perform("train", inputs={"dataset": "d"}, config=config, code="", schema_version=1, do=do)


def writes(text: str = "weights", calls: list[Path] | None = None) -> Do:
    def do(folder: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(folder)
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "weights.bin").write_text(text)
        return {"metric": 0.5}

    return do


def done(storage: Storage, do: Do | None = None, **config: Any) -> StageManifest:
    manifest, _ = perform(storage, do or writes(), **config)
    assert manifest is not None
    return manifest


def folders(storage: Storage) -> set[str]:
    return {path.name for path in (storage.root / "stages").iterdir() if path.is_dir()}


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


class TestEvents:
    def test_appended_and_told(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        told: list[dict[str, Any]] = []
        run.listeners.append(told.append)
        run.event("started", name="é\u2028\x85×", run_dir="x")
        run.event("finished", state="succeeded")
        run.metric(stage="train", step=1, loss=0.5)
        assert run.events() == told
        assert [event["event"] for event in told] == ["started", "finished"]
        assert told[0]["name"] == "é\u2028\x85×"
        assert run.metrics()[0]["loss"] == 0.5
        assert len((run.folder / "events.jsonl").read_bytes().splitlines()) == 2

    @pytest.mark.parametrize("cut", [1, 5, 12, 30])
    def test_a_line_that_a_crash_cut_off_is_passed_over(self, cut: int, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        run.event("first")
        run.event("second", text="ééééé")
        path = run.folder / "events.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        whole = ["first", "second"] if cut == 1 else ["first"]
        assert [event["event"] for event in run.events()] == whole
        # And it takes nothing that is written after it down.
        run.event("third")
        run.event("fourth")
        assert [event["event"] for event in run.events()] == [*whole, "third", "fourth"]

    def test_no_file_is_no_events(self, tmp_path: Path) -> None:
        assert read_lines(tmp_path / "events.jsonl") == []

    def test_lines_of_several_threads_stay_whole(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)

        def write(number: int) -> None:
            for _ in range(50):
                run.event("step", thread=number, text="x" * 200)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(run.events()) == 200


class TestRuns:
    def test_the_spec_is_kept_as_it_was_asked_for(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        assert run.spec == SPEC
        assert run.spec.document() == SPEC.document()
        assert storage.create_run(SPEC).id != run.id

    def test_found_by_id_and_by_folder(self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = storage.create_run(SPEC)
        assert storage.find_run(run.id).folder == run.folder
        assert storage.find_run(str(run.folder)).folder == run.folder
        monkeypatch.chdir(tmp_path)
        assert storage.find_run(f"runs/{run.id}").folder == run.folder
        # A folder of the same name that is no run does not stand before it.
        (tmp_path / run.id).mkdir()
        assert storage.find_run(run.id).folder == run.folder

    def test_a_misspelt_id_gets_the_nearest(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        with pytest.raises(SpecError) as caught:
            storage.find_run(run.id[:-1])
        assert caught.value.problems[0].nearest == run.id

    @pytest.mark.parametrize(
        "name", ["../other/run", "..", ".", "", "stages", "datasets", "a\n", "a/b", "/etc", "x" * 999]
    )
    def test_names_that_are_no_runs(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = Storage(tmp_path / "runs")
        for place in ("other/run", "runs/a/b"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "spec.yaml").write_text("name: x\n")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        if name == "../other/run":
            monkeypatch.chdir(tmp_path / "runs" / "a")  # from where the name leads to no folder
        with pytest.raises(SpecError, match="no run"):
            storage.find_run(name)

    def test_one_driver_at_a_time(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        refused = pytest.raises(SpecError, match=f"driven by process {os.getpid()}")
        with run.driving(), refused, Run(run.folder).driving():
            pass
        with run.driving():
            pass  # the first has ended

    def test_a_dead_driver_is_none(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)

        def drive() -> None:
            with Run(run.folder).driving():
                os._exit(9)

        process = multiprocessing.get_context("fork").Process(target=drive)
        process.start()
        process.join(30)
        assert process.exitcode == 9
        with run.driving():
            assert (run.folder / ".driver").read_text() == str(os.getpid())


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


def test_a_checkpoint_that_takes_longer_than_the_grace_time_is_warned_of_once() -> None:
    from jobs.layout import ParallelLayout
    from jobs.spec.train import Retry
    from orchestrator.stages import Stages

    told: list[dict[str, Any]] = []
    stages = Stages(
        storage=Storage(Path("unused")),
        code="",
        dataset=Path("unused"),
        group=lambda: pytest.fail("no worker is needed"),
        layouts=[ParallelLayout()],
        micro_batch=None,
        retry=Retry(grace_s=5.0),
        on_report=told.append,
        on_stage=lambda name, manifest, reused: None,
        should_stop=lambda: False,
    )
    listen = stages._heed_grace("train")
    for seconds in (1.0, 12.5, 13.0):
        listen({"event": "checkpoint", "label": "train", "step": 10, "seconds": seconds})
    (warning,) = (event for event in told if event["event"] == "warning")
    assert "12.5 s" in warning["message"]
    assert "5 s" in warning["message"]
