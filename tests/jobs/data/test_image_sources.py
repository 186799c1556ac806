"""IDX, CIFAR and image folders: what is read, and what is said of damaged input."""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sources import MakeData, OpenDataset, idx_bytes, write_idx

from jobs.data import inspect, prepare
from jobs.errors import DataError

DAMAGED_IDX = {
    "labels for images": (
        "train-images-idx3-ubyte",
        b"\0\0\x08\x01" + bytes(100),
        "magic number 0x00000801.*allowed: 0x00000803",
    ),
    "header cut": ("train-images-idx3-ubyte", b"\0\0", "truncated within its header"),
    "pixels cut": ("train-images-idx3-ubyte", idx_bytes(np.zeros((40, 6, 5), np.uint8))[:-1], "1199 of 1200 bytes"),
    "bytes too many": ("train-images-idx3-ubyte", idx_bytes(np.zeros((40, 6, 5), np.uint8)) + b"x", "bytes follow"),
    "image missing": (
        "train-images-idx3-ubyte",
        idx_bytes(np.zeros((39, 6, 5), np.uint8)),
        "39 samples, but 40 targets",
    ),
    "no height": ("train-images-idx3-ubyte", idx_bytes(np.zeros((40, 0, 5), np.uint8)), "is empty"),
    "huge height": ("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 40, 2**31, 2**31), "would take"),
    "one class": ("train-labels-idx1-ubyte", idx_bytes(np.zeros(40, np.uint8)), "2 of 3 classes"),
    "other test size": ("t10k-images-idx3-ubyte", idx_bytes(np.zeros((20, 7, 5), np.uint8)), "test images"),
    "unknown test class": (
        "t10k-labels-idx1-ubyte",
        idx_bytes(np.full(20, 9, np.uint8)),
        "'9', occur in the test split",
    ),
}


class TestIdx:
    @pytest.mark.parametrize("compress", [False, True])
    def test_pixels_and_labels_arrive(
        self, tmp_path: Path, images: Any, labels: Any, compress: bool, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        folder = tmp_path / "idx"
        write_idx(folder, "train-images-idx3-ubyte", images, compress=compress)
        write_idx(folder, "train-labels-idx1-ubyte", labels, compress=compress)
        data = make_data("idx", folder)
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.input_shape == (1, 6, 5)
        assert dataset.info.classes == ("0", "1", "2")
        assert dataset.info.num_samples == {"train": 48, "validation": 6, "test": 6}
        found = [
            (pixels.tobytes(), int(label))
            for split in ("train", "validation", "test")
            for pixels, label in zip(
                dataset.raw(split, np.arange(dataset.num_samples(split))), dataset.targets(split), strict=True
            )
        ]
        assert sorted(found) == sorted((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))

    def test_the_own_test_split_is_kept(
        self, idx_folder: Path, images: Any, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("idx", idx_folder)
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.num_samples == {"train": 36, "validation": 4, "test": 20}
        assert np.array_equal(dataset.raw("test", np.arange(20))[:, 0], images[40:])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        DAMAGED_IDX.values(),
        ids=DAMAGED_IDX,
    )
    def test_damaged_files(
        self, idx_folder: Path, tmp_path: Path, name: str, content: bytes, message: str, make_data: MakeData
    ) -> None:
        (idx_folder / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            prepare(make_data("idx", idx_folder), "cross_entropy", tmp_path / "out")
        assert caught.value.problems[0].path == "data.source.path"
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-20], "damaged or truncated"),
            (lambda content: b"no gzip at all", "no gzip file"),
            (lambda content: content[:30] + bytes([content[30] ^ 0xFF]) + content[31:], "damaged|magic"),
            (lambda content: gzip.compress(struct.pack(">4I", 0x803, 40, 4000, 4000)), "more than it can hold"),
        ],
    )
    def test_damaged_gzip(
        self,
        idx_folder: Path,
        tmp_path: Path,
        damage: Callable[[bytes], bytes],
        message: str,
        images: Any,
        make_data: MakeData,
    ) -> None:
        path = write_idx(idx_folder, "train-images-idx3-ubyte", images[:40], compress=True)
        (idx_folder / "train-images-idx3-ubyte").unlink()
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=message):
            prepare(make_data("idx", idx_folder), "cross_entropy", tmp_path / "out")

    @pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
    def test_a_missing_file(self, idx_folder: Path, missing: str, make_data: MakeData) -> None:
        (idx_folder / missing).unlink()
        with pytest.raises(DataError, match=f"lacks {missing}"):
            inspect(make_data("idx", idx_folder), "cross_entropy")

    def test_a_misspelt_folder(self, idx_folder: Path, make_data: MakeData) -> None:
        with pytest.raises(DataError) as caught:
            inspect(make_data("idx", idx_folder.with_name("idxx")), "cross_entropy")
        assert caught.value.problems[0].nearest == str(idx_folder)


def cifar_pixels(num_samples: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num_samples, 3072), np.uint8)


def write_cifar10_binary(folder: Path) -> None:
    folder.mkdir()
    pixels, labels = cifar_pixels(120), (np.arange(120) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels], axis=1)
    for number in range(5):
        (folder / f"data_batch_{number + 1}.bin").write_bytes(records[20 * number : 20 * number + 20].tobytes())
    (folder / "test_batch.bin").write_bytes(records[100:].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")


def write_cifar100_binary(folder: Path) -> None:
    folder.mkdir()
    pixels, labels = cifar_pixels(400), (np.arange(400) % 100).astype(np.uint8)
    records = np.concatenate([labels[:, None] // 5, labels[:, None], pixels], axis=1)
    (folder / "train.bin").write_bytes(records[:300].tobytes())
    (folder / "test.bin").write_bytes(records[300:].tobytes())


def pickled(document: Any) -> bytes:
    """As Python 2 wrote it: text is bytes, and NumPy's modules have their old names."""
    return pickle.dumps(document, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar10_python(folder: Path) -> None:
    folder.mkdir()
    pixels, labels = cifar_pixels(120), (np.arange(120) % 10).tolist()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(20 * number, 20 * number + 20)
        (folder / name).write_bytes(pickled({b"data": pixels[rows], b"labels": labels[rows]}))
    (folder / "batches.meta").write_bytes(pickled({b"label_names": [f"class{i}".encode() for i in range(10)]}))


class TestCifar:
    @pytest.mark.parametrize("write", [write_cifar10_binary, write_cifar10_python])
    def test_both_releases_hold_the_same(
        self, tmp_path: Path, write: Callable[[Path], None], make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        write(tmp_path / "cifar")
        data = make_data("cifar", tmp_path / "cifar")
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.input_shape == (3, 32, 32)
        assert dataset.info.classes == tuple(f"class{i}" for i in range(10))
        assert dataset.info.num_samples == {"train": 90, "validation": 10, "test": 20}
        test = dataset.raw("test", np.arange(20))
        assert np.array_equal(test, cifar_pixels(120)[100:].reshape(20, 3, 32, 32))
        assert dataset.targets("test").tolist() == [i % 10 for i in range(100, 120)]

    def test_cifar100_takes_the_fine_labels(
        self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        write_cifar100_binary(tmp_path / "cifar")
        dataset = open_dataset(make_data("cifar", tmp_path / "cifar"))
        assert dataset.info.outputs == 100
        assert dataset.targets("test").tolist() == list(range(100))

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path: Path, make_data: MakeData) -> None:
        class Attack:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "owned"),)

        write_cifar10_python(tmp_path / "cifar")
        (tmp_path / "cifar" / "data_batch_2").write_bytes(pickle.dumps({b"data": Attack()}, protocol=2))
        with pytest.raises(DataError, match="mkdir has no place in it"):
            inspect(make_data("cifar", tmp_path / "cifar"), "cross_entropy")
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize(
        ("write", "name", "content", "message"),
        [
            (write_cifar10_binary, "data_batch_3.bin", bytes(3072), "no whole number of 3073-byte records"),
            (write_cifar10_binary, "data_batch_3.bin", b"\x0a" + bytes(3072), "label 10 of sample"),
            (write_cifar10_binary, "data_batch_3.bin", None, "lacks data_batch_3.bin"),
            (write_cifar10_binary, "batches.meta.txt", b"cat dog", "has 2 class names"),
            (write_cifar10_python, "test_batch", b"", "damaged or no CIFAR file"),
            (write_cifar10_python, "test_batch", b"\x80\x02}q\x00(U\x04data", "damaged or no CIFAR file"),
            (write_cifar10_python, "test_batch", pickled([1]), "holds a list"),
            (write_cifar10_python, "test_batch", pickled({b"data": [1]}), "holds no 'data'"),
            (write_cifar10_python, "test_batch", pickled({b"data": np.zeros((1, 3072), np.uint8)}), "'labels'"),
            (
                write_cifar10_python,
                "test_batch",
                pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
                "2 samples, but 1 targets",
            ),
        ],
    )
    def test_damaged_files(
        self,
        tmp_path: Path,
        write: Callable[[Path], None],
        name: str,
        content: bytes | None,
        message: str,
        make_data: MakeData,
    ) -> None:
        write(tmp_path / "cifar")
        if content is None:
            (tmp_path / "cifar" / name).unlink()
        else:
            (tmp_path / "cifar" / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            prepare(make_data("cifar", tmp_path / "cifar"), "cross_entropy", tmp_path / "out")


def write_image_folder(folder: Path, size: tuple[int, int] = (4, 6)) -> None:
    """12 images each of cats (dark) and dogs (bright)."""
    for name, base in (("cats", 20), ("dogs", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (size[1], size[0]), (base + i, base, base)).save(folder / name / f"{i:02}.png")


class TestImageFolder:
    def test_classes_are_folder_names(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        write_image_folder(tmp_path / "pets")
        (tmp_path / "pets" / "cats" / "notes.txt").write_text("passed over")
        (tmp_path / "pets" / ".cache").mkdir()
        data = make_data("image_folder", tmp_path / "pets")
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.classes == ("cats", "dogs")
        assert dataset.info.input_shape == (3, 4, 6)
        ids = np.arange(dataset.num_samples("train"))
        bright = dataset.raw("train", ids)[:, 1, 0, 0] == 200
        assert np.array_equal(dataset.targets("train") == 1, bright)

    def test_train_and_test_folders(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        write_image_folder(tmp_path / "pets" / "train")
        write_image_folder(tmp_path / "pets" / "test")
        data = make_data("image_folder", tmp_path / "pets", size=[8, 8], channels=1)
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.input_shape == (1, 8, 8)
        assert dataset.info.num_samples == {"train": 22, "validation": 2, "test": 24}

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "cats" / "03.png").write_bytes(b"no image"), "03.png is damaged or no image"),
            (lambda f: (f / "cats" / "03.png").write_bytes((f / "cats" / "03.png").read_bytes()[:45]), "03.png"),
            (lambda f: Image.new("RGB", (5, 5)).save(f / "dogs" / "03.png"), "has 5 x 5 pixels, and 4 x 6"),
            (lambda f: Image.new("I;16", (6, 4)).save(f / "dogs" / "03.png"), "more than 8 bits"),
            (lambda f: Image.new("1", (9000, 9000)).save(f / "dogs" / "03.png"), "claims 9000 x 9000 pixels"),
            (lambda f: (f / "birds").mkdir(), "birds has no images"),
            (lambda f: [p.unlink() for p in (f / "dogs").iterdir()] and (f / "dogs").rmdir(), "one class only"),
        ],
    )
    def test_damaged_folders(
        self, tmp_path: Path, damage: Callable[[Path], Any], message: str, make_data: MakeData
    ) -> None:
        write_image_folder(tmp_path / "pets")
        damage(tmp_path / "pets")
        with pytest.raises(DataError, match=message):
            prepare(make_data("image_folder", tmp_path / "pets"), "cross_entropy", tmp_path / "out")

    def test_a_test_class_that_training_lacks(self, tmp_path: Path, make_data: MakeData) -> None:
        write_image_folder(tmp_path / "pets" / "train")
        write_image_folder(tmp_path / "pets" / "test")
        (tmp_path / "pets" / "test" / "dogs").rename(tmp_path / "pets" / "test" / "hamsters")
        with pytest.raises(DataError, match="'hamsters'"):
            inspect(make_data("image_folder", tmp_path / "pets"), "cross_entropy")

    def test_a_folder_without_classes(self, tmp_path: Path, make_data: MakeData) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="no sub-folders"):
            inspect(make_data("image_folder", tmp_path / "empty"), "cross_entropy")
