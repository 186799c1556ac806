"""What attempts have written: from Ray while they run, from a copy of the service's own once they have ended."""

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from jobs.errors import ClusterUnreachable, JobFailed, SpecError
from jobs.storage import atomic_path
from orchestrator.store import AttemptRecord, JobRecord

_FRESH_S = 1.0
_KEPT = 16


class LogSource(Protocol):
    """Bytes of an attempt's log, which only ever grows."""

    def read(self, job: JobRecord, attempt: AttemptRecord, offset: int, most: int) -> bytes:
        """From `offset`; empty where nothing more is there. Raises ClusterUnreachable."""


class RayLog(Protocol):
    """What is asked of `cluster.submit.RayJobs`."""

    def log(self, submission_id: str) -> list[str]:
        """The lines so far. Raises SpecError for an unknown id, ClusterUnreachable, JobFailed."""


class AttemptLogs:
    """Logs from Ray. What an attempt that has ended wrote is kept, because a Ray that starts anew forgets it.

    Args:
        folder: for the copies.
        ray: None: only copies are read.
    """

    def __init__(self, folder: Path, ray: RayLog | None) -> None:
        self._folder = folder
        self._ray = ray
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def read(self, job: JobRecord, attempt: AttemptRecord, offset: int, most: int) -> bytes:
        copy = self._folder / f"{attempt.submission_id}.log"
        if copy.is_file():
            with copy.open("rb") as file:
                file.seek(offset)
                return file.read(most)
        return self._whole(attempt, copy)[offset : offset + most]

    def _whole(self, attempt: AttemptRecord, copy: Path) -> bytes:
        """All that Ray has; asked once a second at most, however many follow."""
        if self._ray is None or attempt.submitted_ms is None:
            return b""
        name = attempt.submission_id
        with self._lock:
            asked, text = self._recent.get(name, (0.0, b""))
        over = not attempt.state.live
        if time.monotonic() - asked < _FRESH_S and asked and not over:
            return text
        try:
            lines = self._ray.log(name)
        except SpecError:
            return text  # not there yet, or no more
        except JobFailed as error:
            raise ClusterUnreachable(f"the log of {name} cannot be read at present: {error}") from error
        text = "\n".join([*lines, ""] if over else lines).encode("utf-8", "replace")
        if over:
            with atomic_path(copy) as path:
                path.write_bytes(text)
        with self._lock:
            self._recent.pop(name, None)
            if not over:
                self._recent[name] = (time.monotonic(), text)
            if len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        return text
