"""Text in UTF-8: plain, a JSON object a line, or a column of a CSV file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.data.sources.source import PATH, Contents, Samples, check_size, existing_file
from jobs.data.sources.table import read_target, unknown_column
from jobs.data.sources.table_files import read_csv
from jobs.data.text.samples import Corpus
from jobs.errors import DataError
from jobs.spec.data import TextSource

_COLUMN = "data.source.column"
_TARGET = "data.target"


class Text:
    def __init__(self, source: TextSource, target: str | None) -> None:
        self.path = existing_file(source.path)
        self.source = source
        self.target = target

    def files(self) -> dict[str, Path]:
        files = {"": self.path}
        if self.source.tokenizer.file is not None:
            files["tokenizer"] = existing_file(self.source.tokenizer.file, "data.source.tokenizer.file")
        return files

    def outline(self) -> None:
        """The vocabulary, and how many tokens a text has, are known once it is tokenized."""
        return

    def read(self) -> Contents | Corpus:
        if self.source.column is None:
            return Corpus((read_text(self.path),), separated=False, name=self.path.name)
        names = [self.source.column, *([] if self.target is None else [self.target])]
        table = read_table(self.path, names, {self.source.column: _COLUMN, self.target or "": _TARGET})
        texts = texts_of(table, self.source.column, self.path)
        if self.target is None:
            return Corpus(texts, separated=True, name=self.path.name)
        target = read_target(table.column(self.target), f"the target {self.target!r}")
        return Contents(Samples(texts, target))


def read_text(path: Path, where: str = PATH) -> str:
    """All of a file. Raises DataError where it is not UTF-8, and where it is empty."""
    check_size(path.stat().st_size, str(path), where)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError.at(where, f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError.at(where, f"{path} can't be read: {error.strerror}") from error
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # the mark that some editors put first
    if not text.strip():
        raise DataError.at(where, f"{path} has no text")
    return text


def read_table(path: Path, names: list[str], paths: dict[str, str], where: str = PATH) -> pa.Table:
    """The columns `names` of a .jsonl or .csv file, the first of them as text.

    Args:
        paths: where in the spec a column is named.

    Raises DataError for a column that is not there, and for what is no such file in UTF-8.
    """
    text = read_text(path, where)
    if path.suffix.lower() == ".csv":
        table = read_csv(path, delimiter=",", missing=("",), text_columns=names[:1], where=where)
        for name in names:
            if name not in table.column_names:
                raise unknown_column(paths[name], name, table.column_names, path)
        return table.select(names)
    # Splitting at line feeds alone: JSON may hold the other line ends of Unicode within its text.
    rows = [_parse_line(line, f"line {number} of {path}", where) for number, line in enumerate(text.split("\n"), 1)]
    columns = {name: _column(rows, name, path, paths[name]) for name in names}
    return pa.table(columns)


def texts_of(table: pa.Table, column: str, path: Path, where: str = _COLUMN) -> tuple[str, ...]:
    """The texts of a column. Raises DataError where there is none, or where it is no text."""
    values = table.column(column)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise DataError.at(where, f"{column!r} of {path} holds {values.type}, and no text", column, "a column of text")
    texts = values.to_pylist()
    for number, text in enumerate(texts, 1):
        if text is None or not text.strip():
            raise DataError.at(where, f"{column!r} of {path} has no text in row {number}", column, "text in each row")
    return tuple(texts)


def _parse_line(line: str, what: str, where: str) -> dict[str, Any] | None:
    """The object of a line; None where it is blank."""
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError.at(where, f"{what} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError.at(where, f"{what} is no JSON object", None, '{"text": …, "label": …}')
    return row


def _column(rows: list[dict[str, Any] | None], name: str, path: Path, where: str) -> pa.Array:
    """One key of all objects. Raises DataError where none has it, or the values are of different types."""
    known = [key for row in rows if row is not None for key in row]
    if name not in known:
        raise unknown_column(where, name, list(dict.fromkeys(known)), path)
    try:
        return pa.array([row.get(name) for row in rows if row is not None])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError.at(where, f"{name!r} of {path} has values of different types: {error}", name) from error
