"""Raw samples: what a source holds, before any encoding. Images are arrays; tables and vectors are Columns."""

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


Raw = Array | Columns
"""Images: uint8 or float32 (samples, channels, height, width). Tables and vectors: Columns."""


def take(raw: Raw, ids: Array) -> Raw:
    """The samples with these ids, in this order, as a copy."""
    return raw.take(ids) if isinstance(raw, Columns) else raw.take(ids, axis=0)
