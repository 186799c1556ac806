"""A file that arrives in pieces, perhaps over several connections, and is there whole or not at all."""

import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import httpx

from jobs.errors import ArtifactError
from jobs.storage import fsync


def target_of(folder: Path, path: str) -> Path:
    """Where a file of this name goes. Raises ArtifactError for a name that leads out of the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ArtifactError(f"the service names a file that cannot be one of a model: {path!r}")
    return folder.joinpath(*parts)


class WholeFile:
    """Written beside its target under a temporary name, and renamed once it is complete and its digest is right."""

    def __init__(self, target: Path, sha256: str | None) -> None:
        self._target = target
        self._sha256 = sha256
        self._etag = ""

    def __enter__(self) -> Self:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._name = tempfile.mkstemp(dir=self._target.parent, prefix=f".{self._target.name}.")
        self._file = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()
        return self

    def headers(self) -> dict[str, str]:
        """Asks for what is missing, if the file is still the same one."""
        there = self._file.tell()
        headers = {"Accept-Encoding": "identity"}
        return headers | ({"Range": f"bytes={there}-", "If-Range": self._etag} if there and self._etag else {})

    def begin(self, response: httpx.Response) -> None:
        """Looks at which part is coming: the rest, or all of it from the start."""
        self._etag = response.headers.get("etag", "")
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            self._file.seek(0)
            self._file.truncate()
            self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        path = Path(self._name)
        if error is None and self._sha256 in (None, self._digest.hexdigest()):
            fsync(path)
            path.chmod(0o644)
            path.replace(self._target)
            return
        path.unlink()
        if error is None:
            raise ArtifactError(f"{self._target.name} arrived with another digest than the service names")
