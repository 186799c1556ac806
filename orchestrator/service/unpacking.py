"""An archive from a stranger, unpacked: only plain files with harmless names, bounded in number and size.

The archive is read member by member and nothing of its metadata is used: no owner, no mode, no time, no link.
"""

import io
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from jobs.errors import SpecError
from jobs.storage import fsync
from orchestrator.service.settings import Limits

_CHUNK = 1 << 16
_LONGEST_READ = 1 << 20
_MOST_PARTS = 32
_LONGEST_PART = 200


def unpack(archive: IO[bytes], folder: Path, limits: Limits) -> int:
    """Unpacks a .tar.gz into a folder that must not exist yet; returns the number of files.

    The folder appears whole or not at all. Raises SpecError for anything but plain files, for a name that is absolute,
    leads upwards, hides, or is there twice, and for too much of anything.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        count = _unpack(archive, partial, limits)
        fsync(partial)
        partial.rename(folder)
        fsync(folder.parent)
    except (tarfile.TarError, zlib.error, EOFError, OSError, UnicodeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of our own disk
        raise SpecError.at("code", f"the archive is damaged: {error}", allowed="a .tar.gz") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _unpack(archive: IO[bytes], folder: Path, limits: Limits) -> int:
    count = size = 0
    seen: set[str] = set()
    # Of a header, tarfile reads no more than it must; what a member says of its size is not believed either.
    with tarfile.open(fileobj=_Bounded(archive, limits), mode="r:") as members:
        while (member := members.next()) is not None:
            path = _harmless(member)
            count += 1
            if count > limits.code_files:
                raise SpecError.at("code", "the archive holds too many files", allowed=f"{limits.code_files} files")
            if path is None:
                continue
            if path in seen:
                raise SpecError.at("code", "the archive holds a file twice", path)
            seen.add(path)
            target = folder / path
            content = members.extractfile(member)
            assert content is not None
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    while chunk := content.read(_CHUNK):
                        size += len(chunk)
                        if size > limits.code_unpacked_bytes:
                            raise _too_much(limits)
                        file.write(chunk)
            except (FileExistsError, NotADirectoryError):
                raise SpecError.at("code", "the archive has a file and a folder of one name", path) from None
    return len(seen)


def _harmless(member: tarfile.TarInfo) -> str | None:
    """The path of a plain file; None for a folder, which is made when a file needs it. Raises SpecError."""
    name = member.name.removeprefix("./")
    if member.isdir() and name in ("", "."):
        return None
    parts = PurePosixPath(name).parts
    fault = None
    if not (member.isreg() or member.isdir()) or member.sparse is not None:
        fault = "is neither a plain file nor a folder"
    elif not parts or name.startswith("/") or ".." in parts:
        fault = "leads out of the archive"
    elif "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        fault = "has a name that not every system takes"
    elif len(parts) > _MOST_PARTS or any(len(part.encode("utf-8", "replace")) > _LONGEST_PART for part in parts):
        fault = "has a name that is too long"
    elif not name.isprintable():
        fault = "has a name that cannot be read"
    if fault is not None:
        raise SpecError.at("code", f"{name[:_LONGEST_PART]!r} {fault}", allowed="plain files with relative names")
    return "/".join(parts) if member.isreg() else None


def _too_much(limits: Limits) -> SpecError:
    return SpecError.at(
        "code", "the archive unpacks to too much", allowed=f"{limits.code_unpacked_bytes >> 20} MiB unpacked"
    )


class _Bounded(io.RawIOBase):
    """The unpacked stream of a gzip file, which ends with an error once too much has come out of it."""

    def __init__(self, archive: IO[bytes], limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._unzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._ready = bytearray()
        self._position = 0
        # Headers and padding, beside what the files hold.
        self._most = limits.code_unpacked_bytes + 2048 * limits.code_files + (1 << 20)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.ReadError("the archive cannot be read from front to back")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError("a header says that it is larger than any is")
        while len(self._ready) < size:
            if self._unzip.eof:
                break
            raw = self._unzip.unconsumed_tail or self._archive.read(_CHUNK)
            if not raw:
                raise EOFError("it is cut off")
            self._ready += self._unzip.decompress(raw, _CHUNK)
            if self._position + len(self._ready) > self._most:
                raise _too_much(self._limits)
        taken = bytes(self._ready[:size])
        del self._ready[: len(taken)]
        self._position += len(taken)
        return taken
