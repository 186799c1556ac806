"""Raw samples: what a source holds, before any encoding."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """Rows of a table.

    Attributes:
        numeric: float32 (rows, numeric columns); NaN where a value is missing.
        categorical: int32 (rows, categorical columns); a code into the column's categories, -1 for a value that
            is missing or not among them.
    """

    numeric: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.numeric)

    def take(self, ids: Array) -> "Columns":
        return Columns(self.numeric.take(ids, axis=0), self.categorical.take(ids, axis=0))


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, padded to one.

    Attributes:
        values: float32 (samples, steps, features); 0 beyond the end.
        lengths: int32 (samples,): steps that are there, at least one.
    """

    values: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, ids: Array) -> "Sequences":
        return Sequences(self.values.take(ids, axis=0), self.lengths.take(ids))


Raw = Array | Columns | Sequences
"""Images: uint8 or float32 (samples, channels, height, width). Tokens: int32 (samples, steps), 0 beyond the end.
Tables and vectors: Columns. Sequences of numbers: Sequences."""


def take(raw: Raw, ids: Array) -> Raw:
    """The samples with these ids, in this order, as a copy."""
    return raw.take(ids, axis=0) if isinstance(raw, np.ndarray) else raw.take(ids)


def present(lengths: Array, steps: int) -> npt.NDArray[np.bool_]:
    """Which steps are there: (samples, steps)."""
    mask: npt.NDArray[np.bool_] = np.arange(steps) < lengths[:, None]
    return mask
