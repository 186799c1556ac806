"""The content address of a prepared data set: the same data under the same options have the same one, anywhere."""

import json
import time
from pathlib import Path
from typing import Any

from jobs.data.manifest import SCHEMA_VERSION
from jobs.data.sources import open_source
from jobs.data.sources.source import PATH
from jobs.errors import DataError
from jobs.hashing import digest_file, digest_json
from jobs.spec.data import Data
from jobs.storage import read_json, write_json

_CACHE_NAME = "digests.json"
_CACHED_FROM_BYTES = 1 << 20
_SETTLED_S = 2.0
"""A file that changed less than this ago may change again within the clock's grain, with the same size."""


def fingerprint(data: Data, loss: str, cache: Path | None = None) -> str:
    """The SHA-256 (hex) of the files' contents and of all that decides what prepare makes of them.

    Where the source and its tokenizer lie, how the samples are normalized and augmented make no difference. The loss
    does: it decides whether targets become labels or values.

    Args:
        cache: a folder that keeps the digests of large files, by path, size and time of change.

    Raises DataError where the source is not there.
    """
    known = _read_cache(cache)
    digests: dict[str, str] = {}
    for name, path in open_source(data).files().items():
        try:
            digests[name] = _digest(path, known)
        except OSError as error:
            raise DataError.at(PATH, f"{path} can't be read: {error.strerror}") from error
    if cache is not None and known != _read_cache(cache):
        write_json(cache / _CACHE_NAME, known)
    return digest_json(
        {
            "schema_version": SCHEMA_VERSION,
            "source": data.source.model_dump(mode="json", exclude={"path": True, "tokenizer": {"file"}}),
            "files": digests,
            "target": data.target,
            "categories": data.categories,
            "split": data.split.model_dump(mode="json", exclude_none=True),
            "loss": loss,
        }
    )


def _digest(path: Path, known: dict[str, Any]) -> str:
    status = path.stat()
    if status.st_size < _CACHED_FROM_BYTES:
        return digest_file(path)
    key = str(path.resolve())
    state = [status.st_size, status.st_mtime_ns]
    match known.get(key):
        case {"state": before, "sha256": str(digest)} if before == state:
            return digest
    digest = digest_file(path)
    if time.time() - status.st_mtime > _SETTLED_S:
        known[key] = {"state": state, "sha256": digest}
    return digest


def _read_cache(cache: Path | None) -> dict[str, Any]:
    """What is known already; a cache that is missing or damaged is an empty one."""
    if cache is None:
        return {}
    try:
        document = read_json(cache / _CACHE_NAME)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return document if isinstance(document, dict) else {}
