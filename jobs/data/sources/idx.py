"""MNIST's IDX format, plain or gzip: http://yann.lecun.com/exdb/mnist (a big-endian header, then bytes)."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from jobs.data.sources.source import PATH, Contents, Outline, Samples, check_lengths, check_size, existing_folder
from jobs.data.targets import Target
from jobs.errors import DataError
from jobs.spec.data import IdxSource

_IMAGES, _LABELS = 0x0803, 0x0801
"""Magic numbers: type 8 (unsigned byte), then the number of dimensions."""
_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MAX_DEFLATE_RATIO = 1040
"""Deflate can't do better than 1032:1, so a header that promises more is damaged."""
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class Idx:
    def __init__(self, source: IdxSource) -> None:
        self.folder = existing_folder(source.path)

    def files(self) -> dict[str, Path]:
        found = {name: path for name in (*_TRAIN, *_TEST) if (path := self._find(name))}
        wanted = _TRAIN if not any(name in found for name in _TEST) else (*_TRAIN, *_TEST)
        if missing := [name for name in wanted if name not in found]:
            what = f"{self.folder} lacks {', '.join(missing)} (each plain or .gz)"
            raise DataError.at(PATH, what, None, "train-images-idx3-ubyte, train-labels-idx1-ubyte; t10k-… likewise")
        return found

    def outline(self) -> Outline:
        files = self.files()
        shape, train = _outline(files, _TRAIN)
        if _TEST[0] not in files:
            return Outline(shape, train)
        test_shape, test = _outline(files, _TEST)
        self._check_same(shape, test_shape)
        return Outline(shape, train, test)

    def read(self) -> Contents:
        files = self.files()
        images, labels = _read(files, _TRAIN)
        if _TEST[0] not in files:
            return Contents(Samples(images, labels))
        test_images, test_labels = _read(files, _TEST)
        self._check_same(images.shape[1:], test_images.shape[1:])
        return Contents(Samples(images, labels), Samples(test_images, test_labels))

    def _find(self, name: str) -> Path | None:
        return next((p for p in (self.folder / name, self.folder / f"{name}.gz") if p.is_file()), None)

    def _check_same(self, train: tuple[int, ...], test: tuple[int, ...]) -> None:
        if train != test:
            raise DataError.at(PATH, f"{self.folder}: training images are {train}, test images {test}")


def _outline(files: dict[str, Path], names: tuple[str, str]) -> tuple[tuple[int, ...], Target]:
    with _open(files[names[0]]) as file:
        count, height, width = _read_header(file, files[names[0]], _IMAGES, PATH)
    labels = read_array(files[names[1]], _LABELS)
    check_lengths(count, len(labels), str(files[names[0]]))
    return (1, height, width), Target(labels)


def _read(files: dict[str, Path], names: tuple[str, str]) -> tuple[npt.NDArray[np.uint8], Target]:
    images = read_images(files[names[0]])
    labels = read_array(files[names[1]], _LABELS)
    check_lengths(len(images), len(labels), str(files[names[0]]))
    return images, Target(labels)


def read_images(path: Path, where: str = PATH) -> npt.NDArray[np.uint8]:
    """An images file: uint8 (samples, 1, height, width). Raises DataError."""
    return read_array(path, _IMAGES, where)[:, None]


def read_array(path: Path, magic: int, where: str = PATH) -> npt.NDArray[np.uint8]:
    """The array of an IDX file with this magic number. Reads no more than its header promises. Raises DataError."""
    with _open(path) as file:
        shape = _read_header(file, path, magic, where)
        size = int(np.prod(shape, dtype=object))
        check_size(size, str(path), where)
        if path.suffix == ".gz" and size > _MAX_DEFLATE_RATIO * path.stat().st_size:
            raise DataError.at(where, f"{path} is damaged: its header promises {size} bytes, more than it can hold")
        try:
            content = file.read(size)
            surplus = file.read(1)
        except _DAMAGED as error:
            raise DataError.at(where, f"{path} is damaged or truncated: {error}") from error
    if len(content) < size:
        raise DataError.at(where, f"{path} is truncated: {len(content)} of {size} bytes after the header")
    if surplus:
        raise DataError.at(where, f"{path} is damaged: bytes follow the {size} that its header promises")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_header(file: BinaryIO, path: Path, magic: int, where: str) -> tuple[int, ...]:
    num_dimensions = magic & 0xFF
    try:
        header = file.read(4 + 4 * num_dimensions)
    except _DAMAGED as error:
        raise DataError.at(where, f"{path} is damaged or no gzip file: {error}") from error
    if len(header) < 4 + 4 * num_dimensions:
        raise DataError.at(where, f"{path} is truncated within its header")
    found, *shape = struct.unpack(f">{1 + num_dimensions}I", header)
    if found != magic:
        raise DataError.at(where, f"{path} has the magic number {found:#010x}", None, f"{magic:#010x}")
    if 0 in shape:
        raise DataError.at(where, f"{path} is empty: its header says {' x '.join(map(str, shape))}")
    return tuple(shape)
