"""Modules of users: taken in once by their digest, and laid down beside each job that uses them.

<runs>/.service/uploads/<project>/<sha256>/       unpacked; the newest of each project are kept
<runs>/.service/jobs/<job>/code/                  what a job's driver starts in
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobs.errors import SpecError
from jobs.storage import fsync, storage_errors
from orchestrator.service.settings import ServiceSettings
from orchestrator.service.unpacking import unpack

KEPT_PER_PROJECT = 50


@contextmanager
def receiving(settings: ServiceSettings, project: str) -> Iterator[IO[bytes]]:
    """A file for an archive that is arriving; it is gone afterwards."""
    folder = settings.uploads / project
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file


def keep(archive: IO[bytes], settings: ServiceSettings, project: str, digest: str) -> int:
    """Unpacks an archive that was received, unless it is there already; returns the number of files."""
    folder = settings.uploads / project / digest
    if not folder.is_dir():
        archive.seek(0)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as name:
            unpacked = Path(name) / digest
            with storage_errors(folder):
                unpack(archive, unpacked, settings.limits)
                try:
                    unpacked.rename(folder)
                except OSError:
                    if not folder.is_dir():  # else somebody else has sent the same
                        raise
    os.utime(folder)
    _forget_old(folder.parent, digest)
    return sum(path.is_file() for path in folder.rglob("*"))


def find(settings: ServiceSettings, project: str, digest: str) -> Path:
    """The modules. Raises SpecError where they were not sent, or were forgotten since."""
    folder = settings.uploads / project / digest
    if not folder.is_dir():
        raise SpecError.at("code", "no modules of this digest were sent to the project", digest, f"PUT /code/{digest}")
    return folder


@contextmanager
def laid_down(modules: Path, job_folder: Path) -> Iterator[Callable[[], None]]:
    """A copy of the modules for a job, on the disk before the job is; it goes again unless it is to be kept."""
    target = job_folder / "code"
    kept = False

    def keep_it() -> None:
        nonlocal kept
        kept = True

    try:
        with storage_errors(job_folder):
            shutil.copytree(modules, target, symlinks=True)
            for folder, _, names in os.walk(target):
                for name in names:
                    fsync(Path(folder, name))
                fsync(Path(folder))
            fsync(job_folder)
            fsync(job_folder.parent)
        yield keep_it
    finally:
        if not kept:
            shutil.rmtree(job_folder, ignore_errors=True)


def _forget_old(folder: Path, newest: str) -> None:
    entries = [(path.stat().st_mtime, path) for path in folder.iterdir() if not path.name.startswith(".")]
    for _, path in sorted(entries, reverse=True)[KEPT_PER_PROJECT:]:
        if path.name != newest:
            shutil.rmtree(path, ignore_errors=True)
