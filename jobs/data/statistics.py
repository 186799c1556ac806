"""What is known of the training split: the facts every encoding is made from."""

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from jobs.data.raw import Array, Columns, Sequences, present
from jobs.section import Record

MAX_BINS = 32
_CHUNK_SAMPLES = 4096


class ImageStatistics(Record):
    kind: Literal["image"] = "image"
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    dtype: Literal["uint8", "float32"]
    max_value: float
    """The raw pixel that counts as 1."""
    mean: tuple[float, ...]
    """A channel, of pixels scaled by 1/max_value."""
    std: tuple[float, ...]
    resize: bool = False
    """Whether images of other sizes are resized to `shape`."""


class NumericColumn(Record):
    name: str
    mean: float
    std: float
    min: float
    max: float
    num_missing: int


class CategoricalColumn(Record):
    name: str
    categories: tuple[str, ...]
    """Those of the training split, sorted; a sample's code is the index."""


class TableStatistics(Record):
    kind: Literal["table"] = "table"
    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]
    delimiter: str = ","
    missing: tuple[str, ...] = ()
    """What stands for a missing value in a CSV file."""
    columns: tuple[str, ...] = ()
    """Of a CSV file without a header line."""


class BinnedColumn(Record):
    name: str
    edges: tuple[float, ...]
    """Where quantile bins begin, the first bin apart: ascending values of the training split."""


class CodesStatistics(Record):
    """Of a table whose columns become codes."""

    kind: Literal["codes"] = "codes"
    numeric: tuple[BinnedColumn, ...]
    categorical: tuple[CategoricalColumn, ...]
    delimiter: str = ","
    missing: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class SequenceStatistics(Record):
    kind: Literal["sequence"] = "sequence"
    steps: int
    """That the longest sample may have."""
    features: tuple[NumericColumn, ...]
    """Over the steps that are there."""


class TokensStatistics(Record):
    kind: Literal["tokens"] = "tokens"
    steps: int
    vocabulary: int
    """Number of codes, 0 included."""


class TextStatistics(Record):
    """The tokenizer, which is all that is learnt of text; see TextEncoding."""

    kind: Literal["text"] = "text"
    steps: int
    vocabulary: int
    tokenizer: dict[str, Any]
    shift: Literal[0, 1]
    separator: int | None
    column: str
    truncate: bool
    prompts: bool


Statistics = Annotated[
    ImageStatistics | TableStatistics | CodesStatistics | SequenceStatistics | TokensStatistics | TextStatistics,
    Field(discriminator="kind"),
]


def describe_images(pixels: Array, max_value: float | None, resize: bool) -> ImageStatistics:
    """Statistics of (samples, channels, height, width) pixels, uint8 or float32.

    `max_value` is by default 255 for bytes, and the largest magnitude for floats.
    """
    if pixels.dtype == np.uint8:
        peak = 255.0 if max_value is None else max_value
        moments = [_byte_moments(pixels[:, channel]) for channel in range(pixels.shape[1])]
    else:
        peak = max_value or float(max(-pixels.min(), pixels.max())) or 1.0
        moments = [_float_moments(pixels[:, channel]) for channel in range(pixels.shape[1])]
    return ImageStatistics(
        shape=pixels.shape[1:],
        dtype="uint8" if pixels.dtype == np.uint8 else "float32",
        max_value=peak,
        mean=tuple(mean / peak for mean, _ in moments),
        std=tuple(std / peak for _, std in moments),
        resize=resize,
    )


def _byte_moments(pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and deviation by way of a histogram: exact, whatever the number of pixels."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(pixels), _CHUNK_SAMPLES):
        counts += np.bincount(pixels[start : start + _CHUNK_SAMPLES].ravel(), minlength=256)
    count = int(counts.sum())
    total = sum(value * int(n) for value, n in enumerate(counts))
    squares = sum(value * value * int(n) for value, n in enumerate(counts))
    return total / count, float((count * squares - total * total) ** 0.5) / count


def _float_moments(pixels: npt.NDArray[np.float32]) -> tuple[float, float]:
    chunks = [pixels[start : start + _CHUNK_SAMPLES] for start in range(0, len(pixels), _CHUNK_SAMPLES)]
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / pixels.size
    squares = sum(float(np.square(chunk.astype(np.float64) - mean).sum()) for chunk in chunks)
    return mean, (squares / pixels.size) ** 0.5


def describe_column(name: str, values: npt.NDArray[np.float32]) -> NumericColumn:
    """Statistics of the values that are there; at least one must be."""
    present = values[~np.isnan(values)].astype(np.float64)
    return NumericColumn(
        name=name,
        mean=float(present.mean()),
        std=float(present.std()),
        min=float(present.min()),
        max=float(present.max()),
        num_missing=len(values) - len(present),
    )


def bin_column(name: str, values: npt.NDArray[np.float32]) -> BinnedColumn:
    """Up to 32 bins that hold equally many of the values that are there; at least one must be.

    An edge is itself a value (the inverse of the empirical distribution), so that a column of few different values
    has a bin for each of those that are not rare.
    """
    there = values[~np.isnan(values)]
    shares = np.arange(1, MAX_BINS) / MAX_BINS
    edges = np.unique(np.quantile(there, shares, method="inverted_cdf"))
    return BinnedColumn(name=name, edges=tuple(edges[edges > there.min()].astype(float).tolist()))


def describe_sequences(sequences: Sequences) -> SequenceStatistics:
    """Statistics of each feature over the steps that are there."""
    _, steps, width = sequences.values.shape
    there = present(sequences.lengths, steps)
    features = (describe_column(str(position), sequences.values[..., position][there]) for position in range(width))
    return SequenceStatistics(steps=steps, features=tuple(features))


def restrict_categories(
    columns: Columns, names: tuple[str, ...], vocabularies: tuple[tuple[str, ...], ...], train: Array
) -> tuple[Columns, tuple[CategoricalColumn, ...]]:
    """Recodes categorical columns to the categories that occur in the training rows; all others become -1."""
    described = []
    codes = np.empty_like(columns.categorical)
    for position, (name, vocabulary) in enumerate(zip(names, vocabularies, strict=True)):
        column = columns.categorical[:, position]
        present = np.unique(column[train])
        present = present[present >= 0]
        recode = np.full(len(vocabulary) + 1, -1, np.int32)  # the last entry serves -1 itself
        recode[present] = np.arange(len(present), dtype=np.int32)
        codes[:, position] = recode[column]
        described.append(CategoricalColumn(name=name, categories=tuple(vocabulary[code] for code in present)))
    return Columns(columns.numeric, codes), tuple(described)
