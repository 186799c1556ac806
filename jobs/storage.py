"""Durable before visible: how anything that others may read gets onto a disk.

Write under a temporary name in the same folder, flush it to the device, then rename. A crash in between leaves
the old file, or none, and a temporary name that nobody reads. Where a whole folder becomes visible at once, its files
need not be flushed one after the other: `flush_below` does that for all of them, before the folder gets its name.
"""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.errors import StorageError

_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota exceeded",
    errno.EFBIG: "file size limit reached",
}

_GONE = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)
"""What a disk, or a file system of another machine, answers that is not there any more."""

_FLUSHED_AT_ONCE = 8


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a full disk below `path`, or one that has vanished, into a StorageError that says where, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{_FULL[error.errno]} while writing {path}; what was complete before is intact: "
                "free some space, then resume the run"
            ) from error
        if error.errno in _GONE or (error.errno == errno.ENOENT and not os.path.isdir(path.parent)):
            raise StorageError(
                f"the storage has vanished while {path} was being written ({error.strerror}); bring it back, then "
                "resume the run"
            ) from error
        raise


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to; on success it becomes `path`, on any error it is removed.

    Args:
        durable: False where nobody relies on the file before `flush_below` was called for a folder that it is in.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            if durable:
                fsync(temporary)
            temporary.replace(path)
            if durable:
                fsync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file atomically; `durable` as in `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any, *, durable: bool = True) -> None:
    """Writes a JSON file atomically; `durable` as in `atomic_path`. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, durable=durable)


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def fsync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_below(folder: Path) -> None:
    """Flushes a folder, all files below it and all folders' entries to the device.

    At the same time: a file system that keeps a journal writes one entry for all of them, and each alone would wait for
    one of its own.
    """
    places = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(max_workers=min(len(places), _FLUSHED_AT_ONCE)) as threads:
        list(threads.map(fsync, (place for place in places if not place.is_symlink())))
