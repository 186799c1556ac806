"""Layout-free training checkpoints: logical tensors by name, in safetensors and JSON, never a pickle.

    step-00000400/  state.safetensors   param/<name>, buffer/<name>, optimizer/<name>/<state>
                    state.json          step, seed, batch size, data fingerprint, digest of the tensors; written last

A checkpoint is written under a temporary name and renamed, so what is there is whole. A damaged one is passed over
for the one before. Training waits for the tensors to be copied; they are written while it goes on.
"""

import copy
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jobs.hashing import digest_file
from jobs.storage import fsync, read_json, storage_errors, write_json
from jobs.train.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a training stands: everything that the data order is a function of."""

    step: int
    batch_size: int
    seed: int
    fingerprint: str


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Args:
        folder: made when first needed.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[str, torch.Tensor] = {}

    def save(self, engine: Engine, position: Position, history: dict[str, object], *, writer: bool) -> None:
        """Collective: every rank gathers, the `writer` begins to write. Raises what went wrong with the one before."""
        states, optimizer_steps = engine.optimizer_state()
        parameters, buffers = engine.parameters(), engine.buffers()
        if not writer:
            return
        self.wait()
        tensors = {f"param/{k}": v for k, v in parameters.items()}
        tensors |= {f"buffer/{k}": v for k, v in buffers.items()}
        tensors |= {f"optimizer/{k}": v for k, v in states.items()}
        for name, value in tensors.items():
            # Kept from one checkpoint to the next: fresh memory would cost more than the copy itself.
            if name not in self._copies:
                self._copies[name] = torch.empty(value.shape, dtype=value.dtype)
            self._copies[name].copy_(value)
        document = asdict(position) | {"optimizer_steps": optimizer_steps, "history": copy.deepcopy(history)}
        self._writing = self._thread.submit(self._write, self._copies, document)

    def wait(self) -> None:
        """Until the newest checkpoint is on disk. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, tensors: dict[str, torch.Tensor], document: dict[str, object]) -> None:
        final = self.folder / f"step-{document['step']:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        with storage_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                path = temporary / "state.safetensors"
                save_file(tensors, path)
                fsync(path)
                write_json(temporary / "state.json", document | {"sha256": digest_file(path)})
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                fsync(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def newest(self, expected: Position) -> tuple[dict[str, object], dict[str, torch.Tensor]] | None:
        """The newest whole checkpoint that belongs to this training, or None."""
        for path in reversed(self._steps()):
            try:
                document = read_json(path / "state.json")
                if document["sha256"] != digest_file(path / "state.safetensors"):
                    raise ValueError("the tensors do not match their digest")
                tensors = load_file(path / "state.safetensors")
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint %s is damaged (%s); falling back to the one before", path, error)
                continue
            if any(document[key] != value for key, value in asdict(expected).items() if key != "step"):
                logger.warning("checkpoint %s is of another training and is not used", path)
                continue
            return document, tensors
        return None


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
