"""NumPy archives: `x` and `y`, or `x_train`, `y_train` and perhaps `x_test`, `y_test`; with lengths, sequences."""

import difflib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.data.raw import Array, Columns, Raw, Sequences
from jobs.data.sources.arrays import as_channels_first, as_lengths, as_raw, as_steps, check_step_shape
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


@dataclass(frozen=True)
class _Part:
    """The names of a split's arrays."""

    x: str
    y: str
    lengths: str | None


class Npz:
    def __init__(self, source: NpzSource) -> None:
        self.path = existing_file(source.path)
        with _open(self.path, PATH) as archive:
            self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        self.parts = self._parts()

    def files(self) -> dict[str, Path]:
        return {"": self.path}

    def outline(self) -> Outline | None:
        """None for tokens: how many there are, reading all of them tells."""
        shapes = [self._outline_shape(part) for part in self.parts]
        self._check_same(shapes)
        targets = [self._target(part.y) for part in self.parts]
        tokens = len(shapes[0]) == 1 and self.parts[0].lengths is not None
        return None if tokens else Outline(shapes[0], *targets)

    def read(self) -> Contents:
        samples = []
        for part in self.parts:
            what = f"{part.x} of {self.path}"
            x, target = read_array(self.path, part.x), self._target(part.y)
            raw = as_raw(x, what) if part.lengths is None else as_steps(x, read_array(self.path, part.lengths), what)
            check_lengths(len(raw), len(target.values), what)
            samples.append((raw, target))
        raws = [raw for raw, _ in samples]
        self._check_same([_sample_shape(raw) for raw in raws])
        vectors = isinstance(raws[0], Columns)
        names = ColumnNames(tuple(map(str, range(_sample_shape(raws[0])[0])))) if vectors else None
        codes = [int(raw.max()) + 1 for raw in raws if isinstance(raw, np.ndarray) and raw.ndim == 2]
        train, *test = (Samples(raw, target) for raw, target in samples)
        return Contents(train, test[0] if test else None, names, vocabulary=max(codes, default=None))

    def _parts(self) -> list[_Part]:
        allowed = "x and y; or x_train, y_train, and perhaps x_test, y_test; and lengths, or lengths_train, …"
        if "x_train" in self.names or "y_train" in self.names:
            both = "x_test" in self.names or "y_test" in self.names
            suffixes = ["_train", "_test"] if both else ["_train"]
        else:
            suffixes = [""]
        with_lengths = any(f"lengths{suffix}" in self.names for suffix in suffixes)
        parts = [_Part(f"x{s}", f"y{s}", f"lengths{s}" if with_lengths else None) for s in suffixes]
        wanted = [name for part in parts for name in (part.x, part.y, part.lengths) if name is not None]
        if missing := [name for name in wanted if name not in self.names]:
            near = difflib.get_close_matches(missing[0], sorted(self.names), n=1, cutoff=0.4)
            there = ", ".join(sorted(self.names)[:10]) or "nothing"
            what = f"{self.path} has no array {missing[0]!r}; it has {there}"
            raise DataError.at(PATH, what, None, allowed, near[0] if near else None)
        return parts

    def _outline_shape(self, part: _Part) -> tuple[int, ...]:
        """Of an encoded sample, from the headers."""
        shape, dtype = _read_header(self.path, part.x)
        what = f"{part.x} of {self.path}"
        if part.lengths is not None:
            check_step_shape(shape, dtype, what, PATH)
            as_lengths(read_array(self.path, part.lengths), shape[0], shape[1], f"the lengths of {what}")
            return (shape[1], shape[2] + 1) if len(shape) == 3 else (shape[1],)
        empty = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))  # takes no memory
        return (shape[1],) if len(shape) == 2 else as_channels_first(empty, what, PATH).shape[1:]

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


def _sample_shape(raw: Raw) -> tuple[int, ...]:
    if isinstance(raw, Columns):
        return (raw.numeric.shape[1],)
    return raw.values.shape[1:] if isinstance(raw, Sequences) else raw.shape[1:]
