"""CSV and Parquet files into Arrow tables."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from jobs.data.sources.source import PATH, check_size, existing_file
from jobs.errors import DataError

_SEPARATOR = "\x1f"
"""ASCII's unit separator."""


def read_csv(
    path: Path,
    *,
    delimiter: str,
    missing: Sequence[str],
    text_columns: Sequence[str],
    header: Sequence[str] = (),
    where: str = PATH,
) -> pa.Table:
    """Reads a CSV file; columns are numbers where every value is one, and text otherwise.

    Args:
        delimiter: one or two characters; with two, quotes have no meaning, and a row is a line.
        missing: what stands for a missing value.
        text_columns: those that are text in any case.
        header: names for the columns of a file without a header line.

    Raises DataError for what is no CSV file in UTF-8.
    """
    from pyarrow import csv

    check_size(path.stat().st_size, str(path), where)
    plain = len(delimiter) > 1
    try:
        table = csv.read_csv(
            _with_one_delimiter(path, delimiter, where) if plain else path,
            read_options=csv.ReadOptions(column_names=list(header) or None),
            parse_options=csv.ParseOptions(
                delimiter=_SEPARATOR if plain else delimiter,
                quote_char=False if plain else '"',
                newlines_in_values=not plain,
            ),
            convert_options=csv.ConvertOptions(
                null_values=list(missing),
                strings_can_be_null=True,
                column_types={name: pa.string() for name in text_columns},
                # true/false stay text: a category is spelled in prediction as in training.
                true_values=[],
                false_values=[],
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError.at(where, f"{path} can't be read as CSV: {error}") from error
    return _checked(table, path, where)


def _with_one_delimiter(path: Path, delimiter: str, where: str) -> pa.BufferReader:
    """The file's content, its two-character delimiter replaced by one that no text holds."""
    content = path.read_bytes()
    if _SEPARATOR.encode() in content:
        raise DataError.at(where, f"{path} holds the control character {_SEPARATOR!r}, and is no text")
    return pa.BufferReader(content.replace(delimiter.encode(), _SEPARATOR.encode()))


def read_parquet(path: Path, where: str = PATH) -> pa.Table:
    """Reads a Parquet file, or all of a folder in the order of their names. Raises DataError."""
    from pyarrow import parquet

    files = parquet_files(path, where)
    tables = []
    for file in files.values():
        try:
            with parquet.ParquetFile(file, memory_map=True) as opened:
                groups = [opened.metadata.row_group(position) for position in range(opened.num_row_groups)]
                check_size(sum(group.total_byte_size for group in groups), str(file), where)
                tables.append(opened.read())
        except (pa.ArrowException, OSError) as error:
            raise DataError.at(where, f"{file} is damaged or no Parquet file: {error}") from error
    try:
        return _checked(pa.concat_tables(tables).unify_dictionaries(), path, where)
    except pa.ArrowInvalid as error:
        raise DataError.at(where, f"the files in {path} have different columns: {error}") from error


def parquet_files(path: Path, where: str = PATH) -> dict[str, Path]:
    """The files of a Parquet source, by the name that identifies them in it."""
    if not path.is_dir():
        return {"": existing_file(path, where)}
    files = {file.name: file for file in sorted(path.glob("*.parquet")) if not file.name.startswith((".", "_"))}
    if not files:
        raise DataError.at(where, f"{path} holds no .parquet files")
    return files


def _checked(table: pa.Table, path: Path, where: str) -> pa.Table:
    if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise DataError.at(where, f"{path} has the column {twice[0]!r} more than once")
    if table.num_rows == 0:
        raise DataError.at(where, f"{path} has no rows")
    return table
