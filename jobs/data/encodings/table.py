"""Rows of tables: to numbers (one-hot), or to codes."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from jobs.data.encodings.encoding import Encoding
from jobs.data.raw import Array, Columns, Raw
from jobs.data.statistics import CodesStatistics, NumericColumn, TableStatistics
from jobs.section import Record


class NumericFeature(Record):
    """(value - shift) / divisor, with `fill` for a missing value, and a feature that says it was missing."""

    name: str
    fill: float
    shift: float
    divisor: float
    indicator: bool


class BinnedFeature(Record):
    """Which quantile bin a value lies in: 1 below the first edge, one more from each edge on; 0 if it is missing."""

    name: str
    edges: tuple[float, ...]
    """Ascending; a value on an edge belongs to the bin above."""


class CategoricalFeature(Record):
    """One-hot: a feature a category, and a last one for values that are missing or none of them.

    As a code: the category's place, from 1 on; 0 for values that are missing or none of them.
    """

    name: str
    categories: tuple[str, ...]


class RowEncoding(Encoding):
    """What the encodings of tables share: which columns there are, and how a CSV file writes them."""

    kind: Literal["table", "codes"]
    numeric: tuple[NumericFeature | BinnedFeature, ...]
    categorical: tuple[CategoricalFeature, ...]
    delimiter: str = ","
    missing: tuple[str, ...] = ()
    columns: tuple[str, ...] = Field(default=(), exclude_if=lambda columns: not columns)
    """Of a CSV file without a header line; written only where there are any, so that older cards stay the same."""

    @property
    def column_names(self) -> list[str]:
        """Numeric, then categorical columns, in the order of Columns."""
        return [feature.name for feature in self.numeric] + [feature.name for feature in self.categorical]


class TableEncoding(RowEncoding):
    """Features in order: the numeric columns, their missing-value indicators, then each categorical column one-hot."""

    kind: Literal["table"] = "table"
    numeric: tuple[NumericFeature, ...]

    @property
    def signature_kind(self) -> Literal["vector"]:
        return "vector"

    @property
    def input_shape(self) -> tuple[int, ...]:
        num_indicators = sum(feature.indicator for feature in self.numeric)
        num_slots = sum(len(feature.categories) + 1 for feature in self.categorical)
        return (len(self.numeric) + num_indicators + num_slots,)

    def encode(self, raw: Raw) -> npt.NDArray[np.float32]:
        assert isinstance(raw, Columns)
        x = np.zeros((len(raw), *self.input_shape), np.float32)
        end = self._encode_numeric(raw.numeric, x)
        rows = np.arange(len(raw))
        for position, feature in enumerate(self.categorical):
            unknown = len(feature.categories)
            codes = raw.categorical[:, position]
            x[rows, end + np.where(codes < 0, unknown, codes)] = 1.0
            end += unknown + 1
        return x

    def _encode_numeric(self, values: Array, x: npt.NDArray[np.float32]) -> int:
        """Fills the numeric features and indicators; returns the number of the next feature."""
        count = len(self.numeric)
        if not count:
            return 0
        fill, shift, divisor = np.array([(f.fill, f.shift, f.divisor) for f in self.numeric]).T
        absent = np.isnan(values)
        x[:, :count] = (np.where(absent, fill, values) - shift) / divisor
        indicators = [position for position, feature in enumerate(self.numeric) if feature.indicator]
        x[:, count : count + len(indicators)] = absent[:, indicators]
        return count + len(indicators)


class CodesEncoding(RowEncoding):
    """An integer a column: the numeric columns by their quantile bins, then the categorical ones."""

    kind: Literal["codes"] = "codes"
    numeric: tuple[BinnedFeature, ...]

    @property
    def signature_kind(self) -> Literal["codes"]:
        return "codes"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (len(self.numeric) + len(self.categorical),)

    @property
    def num_codes(self) -> tuple[int, ...]:
        bins = [len(feature.edges) + 2 for feature in self.numeric]
        return (*bins, *(len(feature.categories) + 1 for feature in self.categorical))

    def encode(self, raw: Raw) -> npt.NDArray[np.int64]:
        assert isinstance(raw, Columns)
        codes = np.empty((len(raw), *self.input_shape), np.int64)
        for position, feature in enumerate(self.numeric):
            values = raw.numeric[:, position]
            place = np.searchsorted(feature.edges, values, side="right")
            codes[:, position] = np.where(np.isnan(values), 0, place + 1)
        codes[:, len(self.numeric) :] = raw.categorical + 1
        return codes


def table_encoding(statistics: TableStatistics, normalize: str) -> TableEncoding:
    return TableEncoding(
        numeric=tuple(
            NumericFeature(
                name=column.name,
                fill=column.mean,
                shift=shift_of(column, normalize),
                divisor=divisor_of(column, normalize),
                indicator=column.num_missing > 0,
            )
            for column in statistics.numeric
        ),
        categorical=tuple(
            CategoricalFeature(name=column.name, categories=column.categories) for column in statistics.categorical
        ),
        delimiter=statistics.delimiter,
        missing=statistics.missing,
        columns=statistics.columns,
    )


def codes_encoding(statistics: CodesStatistics) -> CodesEncoding:
    return CodesEncoding(
        numeric=tuple(BinnedFeature(name=column.name, edges=column.edges) for column in statistics.numeric),
        categorical=tuple(
            CategoricalFeature(name=column.name, categories=column.categories) for column in statistics.categorical
        ),
        delimiter=statistics.delimiter,
        missing=statistics.missing,
        columns=statistics.columns,
    )


def shift_of(column: NumericColumn, normalize: str) -> float:
    """What is taken from a value."""
    return {"none": 0.0, "unit": column.min, "standardize": column.mean}[normalize]


def divisor_of(column: NumericColumn, normalize: str) -> float:
    """What it is then divided by; 1 for a column that never changes."""
    return {"none": 1.0, "unit": column.max - column.min, "standardize": column.std}[normalize] or 1.0
