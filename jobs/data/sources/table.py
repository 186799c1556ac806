"""CSV and Parquet sources: which columns are features, what type each has, and the target."""

import difflib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.raw import Array, Columns
from jobs.data.sources.arrays import as_numeric
from jobs.data.sources.source import PATH, ColumnNames, Contents, Samples, existing_file
from jobs.data.sources.table_files import parquet_files, read_csv, read_parquet
from jobs.data.targets import Target
from jobs.errors import DataError, Problem
from jobs.spec.data import CsvSource, ParquetSource

MAX_CATEGORIES = {"one_hot": 1000, "codes": 10_000_000}
"""In one column. One-hot, each takes a feature, and a column of names would drown the model."""


class Table:
    def __init__(
        self, source: CsvSource | ParquetSource, target: str, categories: Literal["one_hot", "codes"] = "one_hot"
    ) -> None:
        self.source = source
        self.target = target
        self.categories = categories
        self.path = Path(source.path).expanduser()

    def files(self) -> dict[str, Path]:
        if isinstance(self.source, CsvSource):
            return {"": existing_file(self.path)}
        return parquet_files(self.path)

    def outline(self) -> None:
        """Which features there are depends on all the rows of the training split."""
        return

    def read(self) -> Contents:
        table = self._read_table()
        self._check_names(table.column_names)
        target = read_target(table.column(self.target), f"the target {self.target!r}")
        numeric: dict[str, Array] = {}
        categorical: dict[str, tuple[Array, tuple[str, ...]]] = {}
        for name in table.column_names:
            if name == self.target or name in self.source.ignore:
                continue
            column = table.column(name)
            if name in self.source.categorical or is_text(column.type):
                categorical[name] = self._read_categories(name, column)
            else:
                numeric[name] = read_numbers(name, column, PATH)
        if not numeric and not categorical:
            raise DataError.at(PATH, f"{self.path} has no columns besides the target and the ignored ones")
        columns = stack_columns(list(numeric.values()), [codes for codes, _ in categorical.values()], table.num_rows)
        names = ColumnNames(tuple(numeric), tuple(categorical), tuple(words for _, words in categorical.values()))
        samples = Samples(columns, target)
        if isinstance(self.source, ParquetSource):
            return Contents(samples, columns=names)
        return Contents(
            samples,
            columns=names,
            delimiter=self.source.delimiter,
            missing=self.source.missing,
            header=self.source.columns,
        )

    def _read_table(self) -> pa.Table:
        if isinstance(self.source, ParquetSource):
            return read_parquet(self.path)
        return read_csv(
            existing_file(self.path),
            delimiter=self.source.delimiter,
            missing=self.source.missing,
            text_columns=self.source.categorical,
            header=self.source.columns,
        )

    def _check_names(self, known: list[str]) -> None:
        lists = {"data.source.categorical": self.source.categorical, "data.source.ignore": self.source.ignore}
        for path, names in {"data.target": (self.target,), **lists}.items():
            for name in names:
                if name not in known:
                    raise unknown_column(path, name, known, self.path)
                if path == "data.source.ignore" and name == self.target:
                    raise DataError.at(path, "the target can't be ignored", name)

    def _read_categories(self, name: str, column: pa.ChunkedArray) -> tuple[Array, tuple[str, ...]]:
        words = as_text(name, column, PATH)
        vocabulary = tuple(sorted(word for word in pc.unique(words).to_pylist() if word is not None))
        most = MAX_CATEGORIES[self.categories]
        if len(vocabulary) > most:
            what = f"the column {name!r} has {len(vocabulary)} different values, too many for categories"
            raise DataError.at("data.source.ignore", what, None, f"{most} categories, or ignore the column")
        if not vocabulary:
            raise _no_values(name, "data.source.ignore")
        return encode_words(words, vocabulary), vocabulary


def unknown_column(path: str, name: str, known: list[str], file: Path) -> DataError:
    near = difflib.get_close_matches(name, known, n=1)
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return DataError([Problem(path, f"{file} has no such column", name, shown, near[0] if near else None)])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds categories by its type: text, booleans, or Arrow's dictionaries."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(text or pa.types.is_boolean(kind) or pa.types.is_dictionary(kind))


def as_text(name: str, column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """The column's values as they are spelled."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError.at(where, f"the column {name!r} ({column.type}) can't be read as categories") from error


def encode_words(words: pa.ChunkedArray, vocabulary: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Codes into the vocabulary; -1 for what is missing or not in it."""
    codes = pc.index_in(words, value_set=pa.array(vocabulary, pa.string()))
    return codes.fill_null(-1).to_numpy().astype(np.int32)


def read_numbers(name: str, column: pa.ChunkedArray, where: str) -> npt.NDArray[np.float32]:
    """float32 values with NaN for missing ones. Raises DataError for what are no numbers."""
    kind = column.type
    if pa.types.is_null(kind):
        raise _no_values(name, where)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        allowed = "numbers, or text or booleans as categories; or name it in data.source.categorical or .ignore"
        raise DataError.at(where, f"the column {name!r} holds {kind} values", None, allowed)
    return as_numeric(column.cast(pa.float64(), safe=False).to_numpy(), f"the column {name!r}", where)


def stack_columns(numeric: list[Array], categorical: list[Array], num_rows: int) -> Columns:
    return Columns(
        np.stack(numeric, axis=1) if numeric else np.zeros((num_rows, 0), np.float32),
        np.stack(categorical, axis=1) if categorical else np.zeros((num_rows, 0), np.int32),
    )


def read_target(column: pa.ChunkedArray, what: str) -> Target:
    """Numbers stay numbers, everything else becomes text. Raises DataError for missing targets."""
    kind = column.type
    absent = np.asarray(column.is_null(nan_is_null=True).to_numpy(), np.bool_)
    if absent.any():
        rows = f"is missing in {int(absent.sum())} of {len(column)} rows, the first in row {np.argmax(absent) + 1}"
        raise DataError.at("data.target", f"{what} {rows}", None, "a target in every row")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Target(column.to_numpy(), path="data.target")
    if pa.types.is_decimal(kind):
        return Target(column.cast(pa.float64(), safe=False).to_numpy(), path="data.target")
    words = as_text(what, column, "data.target")
    return Target(np.array(words.to_pylist(), np.str_), path="data.target")


def _no_values(name: str, where: str) -> DataError:
    allowed = "at least one value, or name it in data.source.ignore"
    return DataError([Problem(where, f"the column {name!r} has no values at all", None, allowed)])
