"""A folder with one sub-folder of images a class, or `train/` and `test/` folders of such."""

import struct
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from jobs.data.sources.source import PATH, Contents, Outline, Samples, check_size, existing_folder
from jobs.data.targets import Target
from jobs.errors import DataError
from jobs.spec.data import ImageFolderSource

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files with other endings are passed over."""
_MAX_PIXELS = 1 << 26
"""Of one image file: a few bytes can claim any size."""
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

Size = tuple[int, int]
"""(height, width)."""


class ImageFolder:
    def __init__(self, source: ImageFolderSource) -> None:
        self.folder = existing_folder(source.path)
        self.size = source.size
        self.channels = source.channels
        own_split = _class_folders(self.folder / "train") != []
        self.train_files = _list_images(self.folder / "train" if own_split else self.folder)
        own_test = own_split and (self.folder / "test").is_dir()
        self.test_files = _list_images(self.folder / "test") if own_test else {}
        self.classes = tuple(self.train_files)
        if unknown := [name for name in self.test_files if name not in self.train_files]:
            what = f"{self.folder}/test has the class {unknown[0]!r}, which {self.folder}/train has not"
            raise DataError.at(PATH, what, None, ", ".join(self.classes))

    def files(self) -> dict[str, Path]:
        everything = [*self.train_files.values(), *self.test_files.values()]
        return {str(path.relative_to(self.folder)): path for paths in everything for path in paths}

    def outline(self) -> Outline:
        size = self.size or _read_size(next(iter(self.train_files.values()))[0], PATH)
        test = self._target(self.test_files) if self.test_files else None
        return Outline((self.channels, *size), self._target(self.train_files), test)

    def read(self) -> Contents:
        first = next(iter(self.train_files.values()))[0]
        size = self.size or _read_size(first, PATH)
        train = self._read(self.train_files, size)
        test = self._read(self.test_files, size) if self.test_files else None
        return Contents(train, test, resize=self.size is not None)

    def _read(self, files: dict[str, list[Path]], size: Size) -> Samples:
        paths = [path for paths in files.values() for path in paths]
        return Samples(
            read_images(paths, self.channels, size, resize=self.size is not None, where=PATH), self._target(files)
        )

    def _target(self, files: dict[str, list[Path]]) -> Target:
        labels = [self.classes.index(name) for name, paths in files.items() for _ in paths]
        return Target(np.array(labels, np.int64), self.classes)


def read_images(paths: list[Path], channels: int, size: Size, *, resize: bool, where: str) -> npt.NDArray[np.uint8]:
    """Decodes image files: uint8 (images, channels, height, width).

    With `resize`, other sizes are resampled (bilinear); without, they raise DataError, as does what is no image.
    """
    shape = (len(paths), channels, *size)
    check_size(int(np.prod(shape, dtype=object)), "the images", where)
    pixels = np.empty(shape, np.uint8)
    for position, path in enumerate(paths):
        pixels[position] = _read_image(path, channels, size, resize, where)
    return pixels


def _read_image(path: Path, channels: int, size: Size, resize: bool, where: str) -> npt.NDArray[np.uint8]:
    try:
        with _open(path, where) as opened:
            image = ImageOps.exif_transpose(opened)
            image = image.convert("L" if channels == 1 else "RGB")
    except _DAMAGED as error:
        raise DataError.at(where, f"{path} is damaged or no image: {error}") from error
    found = (image.height, image.width)
    if found != size:
        if not resize:
            what = f"{path} has {found[0]} x {found[1]} pixels, and {size[0]} x {size[1]} are expected"
            raise DataError.at(where, what, None, "images of one size, or `size` in an image_folder source")
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0)


def _open(path: Path, where: str) -> Image.Image:
    """Reads the header alone, and refuses what would take too much memory or lose depth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        image = Image.open(path)
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise DataError.at(where, f"{path} claims {image.width} x {image.height} pixels", None, f"{_MAX_PIXELS} in all")
    if image.mode.startswith(("I", "F")):
        image.close()
        raise DataError.at(where, f"{path} has more than 8 bits a channel", image.mode, "8-bit images")
    return image


def _read_size(path: Path, where: str) -> Size:
    try:
        with _open(path, where) as image:
            upright = ImageOps.exif_transpose(image)
            return upright.height, upright.width
    except _DAMAGED as error:
        raise DataError.at(where, f"{path} is damaged or no image: {error}") from error


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, by name; hidden ones are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path) -> dict[str, list[Path]]:
    """Class name → its images, both sorted."""
    classes = {path.name: list_images(path) for path in _class_folders(folder)}
    if not classes:
        raise DataError.at(PATH, f"{folder} has no sub-folders", None, "one sub-folder of images a class")
    if empty := [name for name, paths in classes.items() if not paths]:
        raise DataError.at(PATH, f"{folder / empty[0]} has no images", None, ", ".join(SUFFIXES))
    return classes
