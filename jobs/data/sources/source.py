"""What every kind of source offers, and the checks they share."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from jobs.data.raw import Raw
from jobs.data.targets import Target
from jobs.errors import DataError

if TYPE_CHECKING:
    from jobs.data.text.samples import Corpus

PATH = "data.source.path"
MAX_ARRAY_BYTES = 1 << 34
"""The largest array that is read into memory (16 GiB): a damaged header can't ask for more."""


@dataclass(frozen=True)
class Outline:
    """What can be said of a source without reading its samples."""

    shape: tuple[int, ...]
    """Of an encoded sample: (channels, height, width), (steps, features + 1), or (features,)."""
    target: Target
    test_target: Target | None = None
    """Of the source's own test split, if it has one."""

    @property
    def kind(self) -> Literal["vector", "image", "sequence"]:
        kinds: dict[int, Literal["vector", "image", "sequence"]] = {1: "vector", 2: "sequence", 3: "image"}
        return kinds[len(self.shape)]


@dataclass(frozen=True)
class Samples:
    x: Raw | tuple[str, ...]
    """Texts are tokenized once it is known which of them the tokenizer may learn from."""
    target: Target


@dataclass(frozen=True)
class ColumnNames:
    numeric: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    vocabularies: tuple[tuple[str, ...], ...] = ()
    """For each categorical column, what its codes stand for, sorted."""


@dataclass(frozen=True)
class Contents:
    """Everything a source holds."""

    train: Samples
    test: Samples | None = None
    """The source's own test split, if it has one."""
    columns: ColumnNames | None = None
    """For tables and vectors alone."""
    max_value: float | None = None
    """The pixel that counts as white, where the source knows it."""
    resize: bool = False
    delimiter: str = ","
    missing: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    """The columns of a CSV file that does not name them."""
    vocabulary: int | None = None
    """Number of codes, 0 included, for tokens."""


class Source(Protocol):
    """A place that samples come from. All methods raise DataError for what is missing, damaged or not as promised."""

    def files(self) -> dict[str, Path]:
        """The files that make up the content, under names that don't depend on where the source lies."""

    def outline(self) -> Outline | None:
        """The light facts; None where nothing short of reading everything tells (tables, text)."""

    def read(self) -> "Contents | Corpus":
        """Reads everything into memory; a Corpus is text that is to be learnt as such."""


def existing_file(path: str | Path, where: str = PATH) -> Path:
    """The path, if it is a file that can be read."""
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        raise DataError.at(where, f"{path} is a folder, and a file is needed")
    if not os.path.isfile(path):
        raise DataError.at(where, f"no such file: {path}", nearest=_nearest_sibling(path))
    return path


def existing_folder(path: str | Path, where: str = PATH) -> Path:
    """The path, if it is a folder."""
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        raise DataError.at(where, f"{path} is a file, and a folder is needed")
    if not os.path.isdir(path):
        raise DataError.at(where, f"no such folder: {path}", nearest=_nearest_sibling(path))
    return path


def _nearest_sibling(path: Path) -> str | None:
    if not os.path.isdir(path.parent):
        return None
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return str(path.with_name(near[0])) if near else None


def check_size(num_bytes: int, what: str, where: str = PATH) -> None:
    if num_bytes > MAX_ARRAY_BYTES:
        raise DataError.at(where, f"{what} would take {num_bytes} bytes", None, f"up to {MAX_ARRAY_BYTES} bytes")


def check_lengths(num_samples: int, num_targets: int, what: str, where: str = PATH) -> None:
    if num_samples != num_targets:
        raise DataError.at(where, f"{what}: {num_samples} samples, but {num_targets} targets")
    if num_samples == 0:
        raise DataError.at(where, f"{what}: no samples")
