"""artifact.json: what an artifact's files are, where they come from, and that they are still the same.

The card is written after the files that it names, so its presence means that the artifact is complete.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import ArtifactError
from jobs.hashing import digest_file
from jobs.records import FileRecord
from jobs.storage import read_json, write_json

CARD_NAME = "artifact.json"
FORMAT_VERSION = 1


def file_records(folder: Path, names: Iterable[str]) -> tuple[FileRecord, ...]:
    """Size and SHA-256 of files, named relative to `folder`. Raises ArtifactError for one that is not there."""
    records = []
    for name in names:
        path = _confined(folder, name)
        if not path.is_file():
            raise ArtifactError(f"{folder}: the file {name!r} is missing")
        records.append(FileRecord(path=name, bytes=path.stat().st_size, sha256=digest_file(path)))
    return tuple(records)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes `folder/artifact.json`, atomically, with the format version added.

    Args:
        folder: where the artifact's files already are.
        card: JSON; `files` lists records as made by `file_records`.

    Raises:
        ArtifactError: a file is named that is outside the folder, is not there, or does not match its record.
    """
    _verify(folder, card)
    write_json(folder / CARD_NAME, {"format_version": FORMAT_VERSION, **card})


def read_card(folder: Path) -> dict[str, Any]:
    """Reads `folder/artifact.json` and checks every file that it names by size and SHA-256.

    Raises:
        ArtifactError: there is no card, it is damaged or of a newer format, or a file is missing, outside the
            folder, or not the one that the card was written for.
    """
    path = folder / CARD_NAME
    try:
        card = read_json(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no artifact: {CARD_NAME} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    version = card.get("format_version") if isinstance(card, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{path} is no artifact card: it has no format_version")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {version}; this version of Thresher reads up to {FORMAT_VERSION}: upgrade"
        )
    _verify(folder, card)
    return card


def _verify(folder: Path, card: dict[str, Any]) -> None:
    try:
        expected = tuple(FileRecord.from_json(entry) for entry in card["files"])
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"{folder}: the card's list of files is missing or damaged") from error
    for record in expected:
        path = _confined(folder, record.path)
        if path.is_file() and path.stat().st_size != record.bytes:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes, but {record.bytes} are recorded: it is damaged"
            )
    for record, actual in zip(expected, file_records(folder, [r.path for r in expected]), strict=True):
        if actual.sha256 != record.sha256:
            raise ArtifactError(f"{folder / record.path} is not the recorded file: its SHA-256 differs")


def _confined(folder: Path, name: str) -> Path:
    # Cards travel between people: one must not be able to make a reader open files elsewhere.
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder}: the file name {name!r} leads out of the artifact's folder")
    return path
