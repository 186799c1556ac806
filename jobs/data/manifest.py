"""dataset.json: what a prepared folder holds. It is written last: its presence means that everything is there."""

import json
from pathlib import Path

from pydantic import ValidationError

from jobs.data.split import SPLITS
from jobs.data.statistics import Statistics
from jobs.errors import DataError
from jobs.hashing import digest_file
from jobs.records import DatasetInfo, FileRecord
from jobs.section import Record
from jobs.storage import read_json, write_json

SCHEMA_VERSION = 2
"""Counts changes to what a prepared folder holds, or to how it is made from the same source."""
_NAME = "dataset.json"


class Manifest(Record):
    schema_version: int
    fingerprint: str
    info: DatasetInfo
    statistics: Statistics
    class_counts: tuple[int, ...]
    """Of the training split, in label order; empty where there are no classes."""
    calibration_ids: tuple[int, ...]
    files: tuple[FileRecord, ...]


def file_name(split: str) -> str:
    return f"{split}.arrow"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / _NAME, manifest.to_json())


def read_manifest(folder: Path) -> Manifest:
    """Reads dataset.json and checks that the files it names are there in full length. Raises DataError."""
    path = folder / _NAME
    try:
        document = read_json(path)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise _damaged(folder, f"{_NAME} has the schema version {version!r}, not {SCHEMA_VERSION}")
        manifest = Manifest.from_json(document)
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(folder, f"there is no {_NAME}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise _damaged(folder, f"{_NAME} can't be read: {str(error).splitlines()[0]}") from error
    if {file.path for file in manifest.files} != {file_name(split) for split in SPLITS}:
        raise _damaged(folder, f"{_NAME} names other files than one a split")
    for file in manifest.files:
        found = (folder / file.path).stat().st_size if (folder / file.path).is_file() else None
        if found != file.bytes:
            state = "is missing" if found is None else f"has {found} bytes instead of {file.bytes}"
            raise _damaged(folder, f"{file.path} {state}")
    return manifest


def check_contents(folder: Path, manifest: Manifest) -> None:
    """Compares every byte, by way of the digests. Raises DataError."""
    for file in manifest.files:
        if digest_file(folder / file.path) != file.sha256:
            raise _damaged(folder, f"{file.path} has changed since it was written")


def describe_file(path: Path) -> FileRecord:
    return FileRecord(path=path.name, bytes=path.stat().st_size, sha256=digest_file(path))


def _damaged(folder: Path, what: str) -> DataError:
    error = DataError.at("", f"{folder} is no complete prepared data set: {what}")
    return DataError(error.problems)
