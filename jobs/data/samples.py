"""Samples to predict on: read from a file or folder in the form that a model's encoding takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.data.encodings import (
    CodesEncoding,
    Encoding,
    ImageEncoding,
    RowEncoding,
    SequenceEncoding,
    TableEncoding,
    TextEncoding,
    TokensEncoding,
)
from jobs.data.raw import Array, Columns, Raw, Sequences
from jobs.errors import DataError

_WHERE = "--data"


def read_samples(path: Path, encoding: Encoding) -> Raw:
    """Raw samples, ready for `encoding.encode`.

    For tables: .csv, .parquet (or a folder of them), and for vectors .npz, .npy. For images: an image file or a
    folder of them (in the order of their names), .npz or .npy, or an IDX images file. For sequences and tokens:
    .npz with x and lengths. For text: .txt (a sample a line), .jsonl or .csv. An archive must hold one array, or
    one named x. Raises DataError for what is missing, damaged, or not what the model takes.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError.at(_WHERE, f"no such file or folder: {path}")
    match encoding:
        case TableEncoding() | CodesEncoding():
            return _read_rows(path, encoding)
        case ImageEncoding():
            return _read_images(path, encoding)
        case SequenceEncoding():
            return _read_sequences(path, encoding)
        case TokensEncoding():
            return _read_tokens(path, encoding)
        case TextEncoding():
            return encoding.tokenize(_read_texts(path, encoding), str(path), _WHERE)
    raise AssertionError(f"no samples are read for {type(encoding).__name__}")


def _read_images(path: Path, encoding: ImageEncoding) -> Raw:
    from jobs.data.sources.idx import read_images as read_idx_images
    from jobs.data.sources.image_folder import SUFFIXES, list_images, read_images

    channels, height, width = encoding.shape
    raw: Columns | Array
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        files = list_images(path) if path.is_dir() else [path]
        if not files:
            raise DataError.at(_WHERE, f"{path} has no images", None, ", ".join(SUFFIXES))
        pixels = read_images(files, channels, (height, width), resize=encoding.resize, where=_WHERE)
        # Image files are in bytes, whatever the pixels that the model was trained with count as white.
        return pixels if encoding.max_value == 255.0 else pixels * np.float32(encoding.max_value / 255.0)
    if path.suffix in (".npz", ".npy"):
        raw = _read_array(path)
    elif "idx3-ubyte" in path.name:
        raw = read_idx_images(path, _WHERE)
    else:
        allowed = f"{', '.join(SUFFIXES)}, a folder of them, .npz, .npy, or an IDX file named …idx3-ubyte"
        raise DataError.at(_WHERE, f"{path} is none of the kinds that hold images", None, allowed)
    found = (raw.numeric.shape[1],) if isinstance(raw, Columns) else raw.shape[1:]
    if found != encoding.shape:
        raise DataError.at(_WHERE, f"{path} has samples of {found}, and the model takes {encoding.shape}")
    return raw


def _read_rows(path: Path, encoding: RowEncoding) -> Columns:
    from jobs.data.sources.table_files import read_csv, read_parquet

    if path.suffix in (".npz", ".npy"):
        return _read_vectors(path, encoding)
    if path.suffix == ".csv":
        text_columns = [feature.name for feature in encoding.categorical]
        table = read_csv(
            path,
            delimiter=encoding.delimiter,
            missing=encoding.missing,
            text_columns=text_columns,
            header=encoding.columns,
            where=_WHERE,
        )
    elif path.suffix == ".parquet" or path.is_dir():
        table = read_parquet(path, _WHERE)
    else:
        raise DataError.at(_WHERE, f"{path} is none of the kinds that hold rows", None, ".csv, .parquet, .npz, .npy")
    return _select_columns(table, path, encoding)


def _select_columns(table: pa.Table, path: Path, encoding: RowEncoding) -> Columns:
    """The model's columns, in the model's order; others are passed over."""
    from jobs.data.sources.table import as_text, encode_words, stack_columns, unknown_column

    for name in encoding.column_names:
        if name not in table.column_names:
            raise unknown_column(_WHERE, name, table.column_names, path)
    numeric = [_read_numbers(feature.name, table) for feature in encoding.numeric]
    categorical = [
        encode_words(as_text(feature.name, table.column(feature.name), _WHERE), feature.categories)
        for feature in encoding.categorical
    ]
    return stack_columns(numeric, categorical, table.num_rows)


def _read_numbers(name: str, table: pa.Table) -> Array:
    from jobs.data.sources.table import read_numbers

    column = table.column(name)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan, np.float32)
    return read_numbers(name, column, _WHERE)


def _read_vectors(path: Path, encoding: RowEncoding) -> Columns:
    raw = _read_array(path)
    width = len(encoding.numeric)
    if encoding.categorical or not isinstance(raw, Columns) or raw.numeric.shape[1] != width:
        names = ", ".join(encoding.column_names[:10])
        raise DataError.at(_WHERE, f"{path} does not hold the columns that the model takes", None, names)
    return raw


def _read_sequences(path: Path, encoding: SequenceEncoding) -> Sequences:
    """Sequences may be padded to fewer steps than the model takes, or to more."""
    from jobs.data.sources.arrays import as_steps

    x, lengths = _read_steps(path)
    raw = as_steps(x, lengths, f"x of {path}", _WHERE)
    num_features = len(encoding.shift)
    if not isinstance(raw, Sequences) or raw.values.shape[2] != num_features:
        takes = f"x (n, steps, {num_features}) and lengths (n,)"
        raise DataError.at(_WHERE, f"{path} has samples of {x.shape[1:]}", None, takes)
    return Sequences(_with_steps(raw.values, int(raw.lengths.max()), encoding.steps, path), raw.lengths)


def _read_tokens(path: Path, encoding: TokensEncoding) -> Array:
    from jobs.data.sources.arrays import as_steps

    x, lengths = _read_steps(path)
    raw = as_steps(x, lengths, f"x of {path}", _WHERE)
    if not isinstance(raw, np.ndarray):
        raise DataError.at(_WHERE, f"{path} has samples of {x.shape[1:]}", None, "integer tokens x (n, steps)")
    if raw.max() >= encoding.vocabulary:
        sample, step = np.argwhere(raw >= encoding.vocabulary)[0]
        what = f"{path} has the token {raw[sample, step] - 1} in sample {sample + 1}"
        raise DataError.at(_WHERE, what, None, f"tokens that the training data has: 0 to {encoding.vocabulary - 2}")
    return _with_steps(raw, int(lengths.max()), encoding.steps, path)


def _read_steps(path: Path) -> tuple[Array, Array]:
    from jobs.data.sources.npz import array_names, read_array

    if path.suffix != ".npz":
        raise DataError.at(_WHERE, f"{path} is of no kind that holds sequences", None, ".npz with x and lengths")
    names = array_names(path, _WHERE)
    if missing := [name for name in ("x", "lengths") if name not in names]:
        raise DataError.at(_WHERE, f"{path} has no array {missing[0]!r}", None, "x and lengths")
    return read_array(path, "x", _WHERE), read_array(path, "lengths", _WHERE)


def _with_steps(values: Array, longest: int, steps: int, path: Path) -> Array:
    """The same samples, padded with zeros to `steps`, or relieved of padding."""
    if longest > steps:
        raise DataError.at(_WHERE, f"{path} has a sample of {longest} steps", None, f"up to {steps} steps")
    padded = np.zeros((len(values), steps, *values.shape[2:]), values.dtype)
    padded[:, :longest] = values[:, :longest]
    return padded


def _read_texts(path: Path, encoding: TextEncoding) -> tuple[str, ...]:
    from jobs.data.sources.text import read_table, read_text, texts_of

    suffix = path.suffix.lower()
    if suffix == ".txt":
        lines = read_text(path, _WHERE).removesuffix("\n").split("\n")
        return tuple(line.removesuffix("\r") for line in lines)
    if suffix not in (".jsonl", ".csv"):
        raise DataError.at(_WHERE, f"{path} is of no kind that holds text", None, ".txt, .jsonl, .csv")
    table = read_table(path, [encoding.column], {encoding.column: _WHERE}, _WHERE)
    return texts_of(table, encoding.column, path, _WHERE)


def _read_array(path: Path) -> Columns | Array:
    from jobs.data.sources.arrays import as_raw
    from jobs.data.sources.npz import array_names, read_array

    if path.suffix == ".npy":
        try:
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError.at(_WHERE, f"{path} is damaged or no NumPy file: {error}") from error
        return as_raw(array, str(path), _WHERE)
    names = array_names(path, _WHERE)
    if "x" not in names and len(names) != 1:
        raise DataError.at(_WHERE, f"{path} holds {', '.join(names) or 'nothing'}", None, "an array x, or one array")
    name = "x" if "x" in names else names[0]
    return as_raw(read_array(path, name, _WHERE), f"{name} of {path}", _WHERE)
