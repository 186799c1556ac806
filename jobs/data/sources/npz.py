"""NumPy archives: `x` and `y`, or `x_train`, `y_train` and perhaps `x_test`, `y_test`."""

import difflib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.data.raw import Array, Columns, Raw
from jobs.data.sources.source import (
    PATH,
    ColumnNames,
    Contents,
    Outline,
    Samples,
    check_lengths,
    check_size,
    existing_file,
)
from jobs.data.targets import Target
from jobs.errors import DataError
from jobs.spec.data import NpzSource

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, KeyError)


class Npz:
    def __init__(self, source: NpzSource) -> None:
        self.path = existing_file(source.path)
        with _open(self.path, PATH) as archive:
            self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        self.pairs = self._pairs()

    def files(self) -> dict[str, Path]:
        return {"": self.path}

    def outline(self) -> Outline:
        shapes = [self._outline_shape(x) for x, _ in self.pairs]
        self._check_same(shapes)
        targets = [self._target(y) for _, y in self.pairs]
        return Outline(shapes[0], *targets)

    def read(self) -> Contents:
        parts = []
        for x, y in self.pairs:
            raw, target = as_raw(read_array(self.path, x), f"{x} of {self.path}"), self._target(y)
            check_lengths(len(raw), len(target.values), f"{x} of {self.path}")
            parts.append(Samples(raw, target))
        shapes = [_sample_shape(part.x) for part in parts]
        self._check_same(shapes)
        vectors = isinstance(parts[0].x, Columns)
        names = ColumnNames(tuple(map(str, range(shapes[0][0])))) if vectors else None
        return Contents(parts[0], parts[1] if len(parts) > 1 else None, names)

    def _pairs(self) -> list[tuple[str, str]]:
        allowed = "x and y; or x_train, y_train, and perhaps x_test, y_test"
        if "x_train" in self.names or "y_train" in self.names:
            wanted = [("x_train", "y_train")]
            if "x_test" in self.names or "y_test" in self.names:
                wanted.append(("x_test", "y_test"))
        else:
            wanted = [("x", "y")]
        if missing := [name for pair in wanted for name in pair if name not in self.names]:
            near = difflib.get_close_matches(missing[0], sorted(self.names), n=1, cutoff=0.4)
            there = ", ".join(sorted(self.names)[:10]) or "nothing"
            what = f"{self.path} has no array {missing[0]!r}; it has {there}"
            raise DataError.at(PATH, what, None, allowed, near[0] if near else None)
        return wanted

    def _outline_shape(self, name: str) -> tuple[int, ...]:
        shape, dtype = _read_header(self.path, name)
        empty = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))  # takes no memory
        if len(shape) == 2:
            return (shape[1],)
        return _as_channels_first(empty, f"{name} of {self.path}", PATH).shape[1:]

    def _target(self, name: str) -> Target:
        values = read_array(self.path, name)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1 or values.dtype.kind not in "iufbU":
            what = f"{name} of {self.path} has the shape {values.shape} and the type {values.dtype}"
            raise DataError.at(PATH, what, None, "(samples,) numbers or text")
        if len(values) == 0:
            raise DataError.at(PATH, f"{name} of {self.path}: no samples")
        return Target(values)

    def _check_same(self, shapes: list[tuple[int, ...]]) -> None:
        if len(set(shapes)) > 1:
            raise DataError.at(PATH, f"{self.path}: x_train has samples of {shapes[0]}, x_test of {shapes[1]}")


def as_raw(array: Array, what: str, where: str = PATH) -> Raw:
    """Raw samples from an array with the samples first.

    (n, features) are vectors. (n, height, width) are images of one channel. Of rank 4, (n, channels, height, width)
    with 1 or 3 channels is tried first, then (n, height, width, channels). Bytes stay bytes; all other numbers
    become float32. Raises DataError for other ranks and types, and for images with NaN or infinity.
    """
    if array.dtype.kind not in "iufb":
        raise DataError.at(where, f"{what} has the type {array.dtype}", None, "numbers")
    if len(array) == 0:
        raise DataError.at(where, f"{what}: no samples")
    if array.ndim == 2:
        return Columns(as_numeric(array, what, where), np.zeros((len(array), 0), np.int32))
    images = _as_channels_first(array, what, where)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(images)
    pixels = np.ascontiguousarray(images, np.float32)
    if not np.isfinite(pixels).all():
        first = np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2, 3)))[0]
        raise DataError.at(where, f"{what} has pixels that are not finite, the first in sample {first + 1}")
    return pixels


def as_numeric(values: Array, what: str, where: str = PATH) -> npt.NDArray[np.float32]:
    """float32 with NaN for missing. Raises DataError for infinite values, and for those beyond float32."""
    with np.errstate(over="ignore"):
        numeric = values.astype(np.float32)
    infinite = np.flatnonzero(np.isinf(numeric).reshape(len(numeric), -1).any(axis=1))
    if infinite.size:
        rows = f"{infinite.size} rows with values that are infinite or beyond float32, the first in row"
        raise DataError.at(where, f"{what} has {rows} {infinite[0] + 1}")
    return numeric


def read_array(path: Path, name: str, where: str = PATH) -> Array:
    """One array of an archive. Objects, which would need unpickling, are refused. Raises DataError."""
    _read_header(path, name, where)
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: Array = archive[name]
    except _DAMAGED as error:
        raise DataError.at(where, f"{name} of {path} is damaged: {error}") from error
    return array


def array_names(path: Path, where: str) -> list[str]:
    with _open(path, where) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _open(path: Path, where: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError.at(where, f"{path} is damaged or no NumPy archive: {error}") from error


def _read_header(path: Path, name: str, where: str = PATH) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without its values; refuses what would not fit into memory."""
    try:
        with _open(path, where) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except _DAMAGED as error:
        raise DataError.at(where, f"{name} of {path} is damaged: {error}") from error
    if dtype.hasobject:
        raise DataError.at(where, f"{name} of {path} holds Python objects", None, "numbers or text")
    check_size(int(np.prod(shape, dtype=object)) * dtype.itemsize, f"{name} of {path}", where)
    return shape, dtype


def _as_channels_first(array: Array, what: str, where: str) -> Array:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.moveaxis(array, 3, 1)
    allowed = "(n, features), (n, height, width), (n, channels, height, width) or (n, height, width, channels)"
    raise DataError.at(where, f"{what} has the shape {array.shape}", None, f"{allowed}; 1 or 3 channels")


def _sample_shape(raw: Raw) -> tuple[int, ...]:
    return (raw.numeric.shape[1],) if isinstance(raw, Columns) else raw.shape[1:]
