"""CIFAR-10 and CIFAR-100, binary or Python release: https://www.cs.toronto.edu/~kriz/cifar.html"""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.data.raw import Array
from jobs.data.sources.source import PATH, Contents, Outline, Samples, check_lengths, check_size, existing_folder
from jobs.data.targets import Target
from jobs.errors import DataError
from jobs.spec.data import CifarSource

_SHAPE = (3, 32, 32)
_PIXELS = 3072


class _Release(NamedTuple):
    """How one of the four releases lays out its files."""

    train: tuple[str, ...]
    test: str
    names: str
    num_classes: int
    binary: bool
    label_key: bytes
    """Python release: the entry that holds the labels."""
    names_key: bytes
    label_bytes: int
    """Binary release: bytes before the pixels, the last of them the label."""


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_RELEASES = (
    _Release(tuple(f"{b}.bin" for b in _BATCHES), "test_batch.bin", "batches.meta.txt", 10, True, b"", b"", 1),
    _Release(("train.bin",), "test.bin", "fine_label_names.txt", 100, True, b"", b"", 2),
    _Release(_BATCHES, "test_batch", "batches.meta", 10, False, b"labels", b"label_names", 0),
    _Release(("train",), "test", "meta", 100, False, b"fine_labels", b"fine_label_names", 0),
)


class Cifar:
    def __init__(self, source: CifarSource) -> None:
        self.folder = existing_folder(source.path)
        self.release = self._recognize()

    def files(self) -> dict[str, Path]:
        names = [*self.release.train, self.release.test]
        if (self.folder / self.release.names).is_file():
            names.append(self.release.names)
        return {name: self.folder / name for name in names}

    def outline(self) -> Outline:
        if self.release.binary:
            train = [_binary_records(self.folder / name, self.release)[:, 0] for name in self.release.train]
            test = _binary_records(self.folder / self.release.test, self.release)[:, 0]
            return Outline(_SHAPE, self._target(np.concatenate(train)), self._target(test))
        contents = self.read()
        assert contents.test is not None
        return Outline(_SHAPE, contents.train.target, contents.test.target)

    def read(self) -> Contents:
        return Contents(self._read(self.release.train), self._read((self.release.test,)))

    def _recognize(self) -> _Release:
        present = {path.name for path in self.folder.iterdir() if path.is_file()}
        best = max(_RELEASES, key=lambda release: len(present & {*release.train, release.test}))
        if missing := [name for name in (*best.train, best.test) if name not in present]:
            allowed = "; or ".join(f"{release.train[0]}, …, {release.test}" for release in _RELEASES)
            raise DataError.at(PATH, f"{self.folder} lacks {', '.join(missing)}", None, allowed)
        return best

    def _read(self, names: tuple[str, ...]) -> Samples:
        read = _read_binary if self.release.binary else _read_python
        batches = [read(self.folder / name, self.release) for name in names]
        pixels = np.concatenate([batch[0] for batch in batches]).reshape(-1, *_SHAPE)
        return Samples(pixels, self._target(np.concatenate([batch[1] for batch in batches])))

    def _target(self, labels: Array) -> Target:
        wrong = np.flatnonzero((labels < 0) | (labels >= self.release.num_classes))
        if wrong.size:
            what = f"{self.folder}: label {labels[wrong[0]]} of sample {wrong[0] + 1}"
            raise DataError.at(PATH, what, None, f"0 to {self.release.num_classes - 1}")
        return Target(labels, self._class_names())

    def _class_names(self) -> tuple[str, ...]:
        path = self.folder / self.release.names
        if not path.is_file():
            return tuple(map(str, range(self.release.num_classes)))
        if self.release.binary:
            names = path.read_text(encoding="utf-8", errors="replace").split()
        else:
            names = [_text(name) for name in _unpickle(path).get(self.release.names_key, [])]
        if len(names) != self.release.num_classes:
            raise DataError.at(PATH, f"{path} has {len(names)} class names", None, str(self.release.num_classes))
        return tuple(names)


def _binary_records(path: Path, release: _Release) -> npt.NDArray[np.uint8]:
    """A view of the file: a row a sample, the label first."""
    record = release.label_bytes + _PIXELS
    size = path.stat().st_size
    check_size(size, str(path))
    if size == 0 or size % record:
        raise DataError.at(PATH, f"{path} is truncated: {size} bytes are no whole number of {record}-byte records")
    return np.memmap(path, np.uint8, "r", shape=(size // record, record))[:, release.label_bytes - 1 :]


def _read_binary(path: Path, release: _Release) -> tuple[Array, Array]:
    records = _binary_records(path, release)
    return records[:, 1:], records[:, 0]


def _read_python(path: Path, release: _Release) -> tuple[Array, Array]:
    document = _unpickle(path)
    pixels, labels = document.get(b"data"), document.get(release.label_key)
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (_PIXELS,)):
        raise DataError.at(PATH, f"{path} holds no 'data' of bytes in rows of {_PIXELS}")
    if not (isinstance(labels, list) and all(isinstance(label, int) for label in labels)):
        raise DataError.at(PATH, f"{path} holds no list of labels {release.label_key.decode()!r}")
    check_lengths(len(pixels), len(labels), str(path))
    return pixels, np.array(labels, np.int64)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, text, lists, dicts and NumPy arrays; anything else is refused before it is looked up."""

    _ADMITTED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
)
"""What the unpickler raises for damaged input, by experience and by its documentation ("but not limited to")."""


def _unpickle(path: Path) -> dict[bytes, Any]:
    """Reads one file of the Python release, written by Python 2. Raises DataError."""
    check_size(path.stat().st_size, str(path))
    try:
        document = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _DAMAGED as error:
        raise DataError.at(PATH, f"{path} is damaged or no CIFAR file: {error}") from error
    if not isinstance(document, dict):
        raise DataError.at(PATH, f"{path} holds a {type(document).__name__}, not a dictionary")
    return document
