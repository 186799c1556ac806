"""Files below a folder, and nothing else: no link is followed, wherever in the path it stands."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import StorageError
from orchestrator.service.answers import not_found

_CHUNK = 256 << 10
_MOST_JSON_BYTES = 64 << 20
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EINVAL, errno.EISDIR)


@dataclass(frozen=True)
class Opened:
    """A plain file that is open for reading; `chunks` closes it."""

    descriptor: int
    size: int
    etag: str
    name: str

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """The bytes from `start`, of a file that may be gone from its folder by now."""
        try:
            while length > 0:
                chunk = os.pread(self.descriptor, min(_CHUNK, length), start)
                if not chunk:
                    return
                start, length = start + len(chunk), length - len(chunk)
                yield chunk
        finally:
            os.close(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def open_below(root: Path, path: str) -> Opened:
    """Opens a file by its path below `root`. Raises Refusal (404) for whatever is no plain file there.

    Each folder is opened by its name in the one before, so that nothing can be exchanged for a link in between.
    """
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise not_found(f"file: {path}")
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            # Non-blocking: to open a pipe would wait for its other end.
            descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise not_found(f"file: {path}") from None
        raise StorageError(f"{root} cannot be read: {error.strerror}") from error
    except ValueError:  # a name that no file system takes
        raise not_found(f"file: {path}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise not_found(f"file: {path}")
    etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
    return Opened(descriptor, found.st_size, etag, parts[-1])


def read_below(root: Path, path: str) -> bytes:
    """A small file's content. Raises Refusal (404)."""
    opened = open_below(root, path)
    return b"".join(opened.chunks(0, min(opened.size, _MOST_JSON_BYTES)))


def names_below(root: Path) -> list[str]:
    """The folders in a folder, in order; none where it is not there."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def lines_after(root: Path, path: str, after: int, limit: int) -> tuple[list[bytes], int]:
    """At most `limit` whole lines of a file that grows, from a position in bytes; and the position after them."""
    opened = open_below(root, path)
    lines: list[bytes] = []
    rest, position = b"", after
    for chunk in opened.chunks(after, max(0, opened.size - after)):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if len(lines) == limit:
                return lines, position
            lines.append(line)
            position += len(line) + 1
    return lines, position


def run_folder(runs: Path, run_dir: str | None) -> Path:
    """The run directory of a job, which lies below `runs`. Raises Refusal (404) where it does not."""
    if run_dir is None:
        raise not_found("run directory yet")
    folder = Path(os.path.realpath(run_dir))
    if not folder.is_relative_to(os.path.realpath(runs)):
        raise not_found("run directory below the service's")
    return folder


def file_sizes(card: Any) -> list[dict[str, Any]]:
    """The files that an artifact's card names: {path, bytes, sha256}."""
    files = card.get("files") if isinstance(card, dict) else None
    return [each for each in files or [] if isinstance(each, dict) and isinstance(each.get("path"), str)]
