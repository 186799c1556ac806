"""What the workers of a group have computed, a share each, brought together: by files in a folder that all reach.

So no process group is needed, and works that never import torch can share what they do. A worker that fails raises its
error; whoever drives the group sees that, and asks the others to stop: who waits here looks for it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.context import Context
from jobs.errors import Interrupted, JobFailed, StorageError
from jobs.storage import atomic_path

Arrays = dict[str, npt.NDArray[Any]]

POLL_S = 0.02
TIMEOUT_S = 600.0
"""The least that the others are waited for."""
PATIENCE = 10.0
"""They are waited for this many times as long as one's own share took."""


def share(count: int, index: int, shares: int) -> range:
    """The index-th of so many equal parts of 0 … count-1, in order.

    >>> [share(5, index, 2) for index in range(2)]
    [range(0, 2), range(2, 5)]
    """
    return range(count * index // shares, count * (index + 1) // shares)


@dataclass(frozen=True)
class Exchange:
    """
    Attributes:
        folder: made when first needed; a new one for each attempt, since what lies there is taken for this one's.
        num_parts: how many workers give a part.
    """

    folder: Path
    num_parts: int

    def give(self, index: int, arrays: Arrays) -> None:
        """Writes a worker's part, atomically. One without arrays is that of a worker with nothing to do."""
        from safetensors.numpy import save_file

        with atomic_path(self._path(index)) as temporary:
            save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, temporary)

    def wait(self, context: Context, own_s: float) -> None:
        """Until all parts are there.

        Args:
            own_s: seconds that this worker's own share took.

        Raises:
            Interrupted: whoever started the work wants it to end.
            JobFailed: a part did not come in time.
        """
        timeout_s = max(TIMEOUT_S, PATIENCE * own_s)
        deadline = time.monotonic() + timeout_s
        for index in range(self.num_parts):
            while not self._path(index).exists():
                if context.stop_requested():
                    raise Interrupted("stopped while waiting for the shares of the other workers")
                if time.monotonic() > deadline:
                    raise JobFailed(f"the share of worker {index} has not come within {timeout_s:.0f} s")
                time.sleep(POLL_S)

    def arrays(self, name: str) -> npt.NDArray[Any]:
        """An array put together from all parts, in order. Raises StorageError if a part is not there, or damaged."""
        parts = [part[name] for part in self._parts() if name in part]
        if not parts:
            raise StorageError(f"{self.folder}: no worker has given {name!r}")
        return np.concatenate(parts)

    def _parts(self) -> Iterator[Arrays]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        for index in range(self.num_parts):
            try:
                yield load_file(self._path(index))
            except (OSError, SafetensorError) as error:
                raise StorageError(
                    f"{self._path(index)}, the share of worker {index}, is not whole: {error}"
                ) from error

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}-of-{self.num_parts:05d}.safetensors"
