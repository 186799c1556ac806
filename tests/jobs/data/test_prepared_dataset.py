"""prepare makes a folder once, whole; Dataset reads it without copies, and notices damage."""

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sources import MakeData, OpenDataset, write_idx

from jobs.data import Dataset, fingerprint, inspect, prepare
from jobs.data.preparation import _lock
from jobs.errors import DataError, StorageError
from jobs.spec.data import Data


def test_importing_stays_light() -> None:
    code = "import sys, jobs.data; print([m for m in ('torch', 'sklearn', 'ray', 'pandas', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "[]\n"


def test_a_second_call_reads_nothing_but_the_folder(idx_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    data = make_data("idx", idx_folder)
    info = prepare(data, "cross_entropy", tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(idx_folder)
    assert prepare(data, "cross_entropy", tmp_path / "out") == info
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    assert sorted(times) == ["dataset.json", "test.arrow", "train.arrow", "validation.arrow"]


def _prepare_and_stamp(data: Data, folder: Path, results: Any) -> None:
    prepare(data, "cross_entropy", folder)
    results.put((folder / "train.arrow").stat().st_ino)


def test_processes_prepare_once(idx_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    data = make_data("idx", idx_folder)
    processes = [context.Process(target=_prepare_and_stamp, args=(data, tmp_path / "out", results)) for _ in range(4)]
    for process in processes:
        process.start()
    files = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert len(files) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx", "out", "out.lock"]


def test_a_lock_that_is_never_let_go(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        _lock(tmp_path / "lock", timeout_s=1),
        pytest.raises(StorageError, match=r"has held .*lock for 0\.2 s"),
        _lock(tmp_path / "lock", timeout_s=0.2),
    ):
        pass
    assert time.monotonic() - start < 30


def test_what_a_crash_left_is_removed(idx_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    remains = tmp_path / ".out.abc.tmp"
    remains.mkdir()
    (remains / "train.arrow").write_bytes(b"half")
    prepare(make_data("idx", idx_folder), "cross_entropy", tmp_path / "out")
    assert not remains.exists()


def test_a_failure_leaves_nothing(idx_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    (idx_folder / "train-images-idx3-ubyte").write_bytes(b"bad")
    with pytest.raises(DataError):
        prepare(make_data("idx", idx_folder), "cross_entropy", tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.lock"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, make_data: MakeData) -> None:
    """A limit on the size of files stands in for the disk: it fails in the same place."""
    data = make_data("builtin", name="digits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"while writing .*out"):
            prepare(data, "cross_entropy", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["out.lock"]
    assert prepare(data, "cross_entropy", tmp_path / "out").outputs == 10


def test_a_source_that_changes_meanwhile(
    idx_folder: Path, tmp_path: Path, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, labels: np.ndarray
) -> None:
    from jobs.data.sources.idx import Idx

    read = Idx.read

    def read_then_change(self: Idx) -> Any:
        contents = read(self)
        write_idx(idx_folder, "train-labels-idx1-ubyte", labels[:40][::-1])
        return contents

    monkeypatch.setattr(Idx, "read", read_then_change)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(make_data("idx", idx_folder), "cross_entropy", tmp_path / "out")


def _flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda folder: (folder / "dataset.json").unlink(),
    "manifest cut": lambda folder: (folder / "dataset.json").write_text("{"),
    "manifest of another version": lambda folder: _edit(folder / "dataset.json", schema_version=99),
    "manifest without classes": lambda folder: _edit(folder / "dataset.json", info={}),
    "file missing": lambda folder: (folder / "test.arrow").unlink(),
    "file cut": lambda folder: os.truncate(folder / "train.arrow", 500),
    "file empty": lambda folder: (folder / "validation.arrow").write_bytes(b""),
    "bytes of a label": lambda folder: _flip_byte(folder / "train.arrow", _label_position(folder)),
    "files swapped": lambda folder: _swap(folder, "validation.arrow", "test.arrow"),
}


def _label_position(folder: Path) -> int:
    """The high byte of the first label."""
    labels = Dataset.open(folder).targets("train").tobytes()
    return (folder / "train.arrow").read_bytes().index(labels) + 7


def _swap(folder: Path, first: str, second: str) -> None:
    (folder / first).rename(folder / "swap")
    (folder / second).rename(folder / first)
    (folder / "swap").rename(folder / second)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_noticed_and_made_anew(
    idx_folder: Path, tmp_path: Path, damage: Callable[[Path], Any], make_data: MakeData
) -> None:
    data = make_data("idx", idx_folder)
    folder = tmp_path / "out"
    info = prepare(data, "cross_entropy", folder)
    before = Dataset.open(folder).raw("train", np.arange(36))
    damage(folder)
    with pytest.raises(DataError):
        Dataset.open(folder)
    assert prepare(data, "cross_entropy", folder) == info
    assert np.array_equal(Dataset.open(folder).raw("train", np.arange(36)), before)


def test_a_changed_pixel_is_noticed_by_verify(idx_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    """Opening does not read everything; prepare and verify do."""
    data = make_data("idx", idx_folder)
    prepare(data, "cross_entropy", tmp_path / "out")
    pixels = Dataset.open(tmp_path / "out").raw("train", np.arange(36)).tobytes()
    _flip_byte(tmp_path / "out" / "train.arrow", (tmp_path / "out" / "train.arrow").read_bytes().index(pixels))
    with pytest.raises(DataError, match=r"train\.arrow has changed"):
        Dataset.open(tmp_path / "out").verify()
    prepare(data, "cross_entropy", tmp_path / "out")
    Dataset.open(tmp_path / "out").verify()


def test_a_folder_that_was_never_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no dataset\.json"):
        Dataset.open(tmp_path / "nothing")


def test_reading_is_by_memory_map(idx_folder: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    dataset = open_dataset(make_data("idx", idx_folder))
    targets = dataset.targets("train")
    assert not targets.flags.owndata
    assert not targets.flags.writeable
    maps = Path("/proc/self/maps").read_text()
    address = targets.__array_interface__["data"][0]
    mapped = [line.split() for line in maps.splitlines() if line.endswith("train.arrow")]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    assert any(low <= address < high for low, high in ranges)


def test_facts_of_the_training_split(idx_folder: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    split = {"calibration": 16, "validation": 0.25}
    dataset = open_dataset(make_data("idx", idx_folder, data={"split": split}))
    assert dataset.num_samples("train") == 30
    assert np.array_equal(dataset.class_counts, np.bincount(dataset.targets("train")))
    assert len(dataset.calibration_ids) == 16
    assert len(set(dataset.calibration_ids)) == 16
    assert dataset.calibration_ids.max() < 30
    assert np.bincount(dataset.targets("train")[dataset.calibration_ids]).min() >= 5
    encoded = dataset.encoded("train", np.arange(30), dataset.encoding("standardize"))
    assert encoded.mean() == pytest.approx(0, abs=1e-5)
    assert encoded.std() == pytest.approx(1, abs=1e-5)


def test_calibration_takes_what_there_is(make_data: MakeData, open_dataset: OpenDataset) -> None:
    dataset = open_dataset(make_data("builtin", name="diabetes"), "mse")
    assert np.array_equal(dataset.calibration_ids, np.arange(354))
    assert len(dataset.class_counts) == 0


class TestFingerprint:
    def test_is_that_of_the_prepared_folder(
        self, idx_folder: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("idx", idx_folder)
        assert open_dataset(data).fingerprint == fingerprint(data, "cross_entropy")

    def test_place_spelling_normalization_and_augmentation_make_no_difference(
        self, idx_folder: Path, tmp_path: Path, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(idx_folder, tmp_path / "elsewhere")
        monkeypatch.chdir(tmp_path)
        variants = [
            make_data("idx", idx_folder),
            make_data("idx", Path("idx")),
            make_data("idx", idx_folder / ".." / "elsewhere"),
            make_data("idx", idx_folder, data={"normalize": "none", "augment": ["horizontal_flip"]}),
        ]
        assert len({fingerprint(data, "cross_entropy") for data in variants}) == 1

    def test_content_options_target_split_and_loss_do(
        self, csv_file: Path, tmp_path: Path, make_data: MakeData
    ) -> None:
        other = tmp_path / "other.csv"
        other.write_text(csv_file.read_text().replace("Oslo", "Oslo2", 1))
        target = {"target": "label"}
        prints = [
            fingerprint(make_data("csv", csv_file, data=target), "bce"),
            fingerprint(make_data("csv", csv_file, data=target), "cross_entropy"),
            fingerprint(make_data("csv", other, data=target), "bce"),
            fingerprint(make_data("csv", csv_file, data={"target": "member"}), "bce"),
            fingerprint(make_data("csv", csv_file, data={**target, "split": {"seed": 1}}), "bce"),
            fingerprint(make_data("csv", csv_file, data=target, ignore=["age"]), "bce"),
        ]
        assert len(set(prints)) == len(prints)

    def test_builtins_have_their_own(self, make_data: MakeData) -> None:
        prints = {fingerprint(make_data("builtin", name=name), "mse") for name in ("digits", "diabetes")}
        assert len(prints) == 2

    def test_digests_of_large_files_are_remembered(self, tmp_path: Path, make_data: MakeData) -> None:
        path = tmp_path / "big.npz"
        np.savez(path, x=np.zeros((1500, 100)), y=np.arange(1500) % 2)
        data = make_data("npz", path)
        os.utime(path, (1e9, 1e9))
        cache = tmp_path / "cache"
        first = fingerprint(data, "cross_entropy", cache)
        assert fingerprint(data, "cross_entropy") == first
        known = json.loads((cache / "digests.json").read_text())
        known[str(path)]["sha256"] = "0" * 64
        (cache / "digests.json").write_text(json.dumps(known))
        assert fingerprint(data, "cross_entropy", cache) != first  # so the cache is what was believed
        os.utime(path, (1e9 + 1, 1e9 + 1))
        assert fingerprint(data, "cross_entropy", cache) == first

    def test_a_damaged_cache_is_an_empty_one(self, tmp_path: Path, idx_folder: Path, make_data: MakeData) -> None:
        data = make_data("idx", idx_folder)
        (tmp_path / "digests.json").write_text("not json")
        assert fingerprint(data, "cross_entropy", tmp_path) == fingerprint(data, "cross_entropy")

    def test_a_file_that_just_changed_is_not_remembered(self, tmp_path: Path, make_data: MakeData) -> None:
        np.savez(tmp_path / "big.npz", x=np.zeros((1500, 100)), y=np.arange(1500) % 2)
        fingerprint(make_data("npz", tmp_path / "big.npz"), "cross_entropy", tmp_path / "cache")
        assert not (tmp_path / "cache" / "digests.json").exists()


def test_inspecting_imports_no_sklearn() -> None:
    code = (
        "import sys; from jobs.data import inspect; from jobs.spec.data import Data;"
        "inspect(Data.model_validate({'source': {'kind': 'builtin', 'name': 'digits'}}), 'cross_entropy');"
        "print('sklearn' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


def test_inspect_changes_nothing(idx_folder: Path, make_data: MakeData) -> None:
    before = sorted(path.name for path in idx_folder.parent.iterdir())
    inspect(make_data("idx", idx_folder), "cross_entropy")
    assert sorted(path.name for path in idx_folder.parent.iterdir()) == before
