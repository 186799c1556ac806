"""Preparing a data set once, for all jobs and processes that will read it."""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jobs.data.arrow import write_arrays
from jobs.data.assembly import Assembly, forget, read
from jobs.data.identity import fingerprint
from jobs.data.manifest import (
    SCHEMA_VERSION,
    Manifest,
    check_contents,
    describe_file,
    file_name,
    read_manifest,
    write_manifest,
)
from jobs.data.split import SPLITS
from jobs.data.stored import to_arrays
from jobs.errors import DataError, StorageError
from jobs.records import DatasetInfo
from jobs.spec.data import Data
from jobs.storage import fsync, storage_errors

_LOCK_TIMEOUT_S = 3600.0
_LOCK_POLL_S = 0.1


def prepare(data: Data, loss: str, folder: Path) -> DatasetInfo:
    """Makes `folder` hold the data set, unless it does: an Arrow file a split, and dataset.json.

    Processes that do so at the same time wait for the first one. A folder whose files were damaged since is made
    anew. Raises DataError for anything wrong with the source, StorageError where the folder can't be written.
    """
    if (ready := _read_complete(folder)) is not None:
        return ready
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock"), _LOCK_TIMEOUT_S):
            if (ready := _read_complete(folder)) is not None:  # another process was faster
                return ready
            _remove_remains(folder)
            identity = fingerprint(data, loss)
            assembly = read(data, loss)
            if fingerprint(data, loss) != identity:
                raise DataError.at("data.source", "the source changed while it was read")
            _publish(assembly, identity, folder)
            forget()  # from here on it is read from the folder
            return assembly.info


def _read_complete(folder: Path) -> DatasetInfo | None:
    try:
        manifest = read_manifest(folder)
        check_contents(folder, manifest)
    except DataError:
        return None
    return manifest.info


def _publish(assembly: Assembly, identity: str, folder: Path) -> None:
    """Writes a folder beside, then renames it. A crash in between leaves a hidden folder that is removed later."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for split in SPLITS:
            path = temporary / file_name(split)
            write_arrays(path, {**to_arrays(assembly.raw[split]), "y": assembly.targets[split]})
            fsync(path)
        write_manifest(temporary, _manifest(assembly, identity, temporary))
        fsync(temporary)
        temporary.rename(folder)
        fsync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _manifest(assembly: Assembly, identity: str, folder: Path) -> Manifest:
    classes = assembly.info.classes
    counts = np.bincount(assembly.targets["train"], minlength=len(classes)) if classes else np.zeros(0, np.int64)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=identity,
        info=assembly.info,
        statistics=assembly.statistics,
        class_counts=tuple(counts.tolist()),
        calibration_ids=tuple(assembly.calibration_ids.tolist()),
        files=tuple(describe_file(folder / file_name(split)) for split in SPLITS),
    )


def _remove_remains(folder: Path) -> None:
    """Whatever a crash left, or a damaged folder; only the holder of the lock may."""
    for remains in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(remains)
    if folder.exists():
        # Renamed first: readers that open it meanwhile find all of it, or nothing.
        doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        folder.rename(doomed / folder.name)
        shutil.rmtree(doomed)


@contextmanager
def _lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds a lock among processes; the system lets go of it when its holder dies. Raises StorageError."""
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"another process has held {path} for {timeout_s:g} s") from None
                time.sleep(_LOCK_POLL_S)
            else:
                break
        yield  # closing the file lets go of the lock
