"""Layout-free training checkpoints: logical tensors by name, in safetensors and JSON, never a pickle.

    step-00000400/  shard-00000.safetensors …   what each rank has written: whole tensors, or parts of them
                    state.json                  step, seed, batch size, data fingerprint; for each tensor its shape and
                                                where its parts lie; digests of the shards; written last

Every rank writes its share of what it holds, none of it twice, and any layout reads from any other's shards what it
holds itself. A checkpoint is written under a temporary name and renamed, so what is there is whole. A damaged one is
passed over for the one before. Training waits for the tensors to be copied; they are written while it goes on.
"""

import copy
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from jobs.errors import SpecError, StorageError
from jobs.hashing import digest_file
from jobs.storage import fsync, read_json, storage_errors, write_json
from jobs.train.engine import Engine
from jobs.train.mesh import Mesh
from jobs.train.state import Held

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_SHARDS_TIMEOUT_S = 600.0
"""How long rank 0 waits for the other ranks' shards."""


@dataclass(frozen=True)
class Position:
    """Where a training stands: everything that the data order is a function of."""

    step: int
    batch_size: int
    seed: int
    fingerprint: str


class Checkpoints:
    """The checkpoints of one training, in one folder that all ranks reach.

    Args:
        folder: made when first needed.
        keep: how many of the newest to keep.
        on_written: is told, at rank 0, each step whose checkpoint is whole, and the seconds that it took in all.
    """

    def __init__(
        self, folder: Path, keep: int, mesh: Mesh, on_written: Callable[[int, float], None] = lambda step, seconds: None
    ) -> None:
        self.folder, self.keep, self.mesh, self.on_written = folder, keep, mesh, on_written
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[str, torch.Tensor] = {}
        self._abandoned = Event()

    def save(self, engine: Engine, position: Position, history: dict[str, object]) -> None:
        """Copies the state, and begins to write it. Collective. Raises what went wrong with the one before."""
        self.wait()
        started = time.monotonic()
        parts: dict[str, dict[str, Any]] = {}
        for held, mine in _shares(engine.held(), self.mesh):
            if not mine:
                continue
            if held.name not in self._copies:
                # Kept from one checkpoint to the next: fresh memory would cost more than the copy itself.
                self._copies[held.name] = torch.empty(held.value.shape, dtype=held.value.dtype)
            self._copies[held.name].copy_(held.value)
            parts[held.name] = {"shape": held.shape, "dim": held.dim, "start": held.start}
        document: dict[str, Any] = asdict(position) | {"scalars": engine.scalars(), "history": copy.deepcopy(history)}
        self._writing = self._thread.submit(self._write, position.step, parts, document, started)

    def wait(self) -> None:
        """Until the newest checkpoint is on disk, as far as this rank writes it. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self, *, abandon: bool = False) -> None:
        """Waits, and ends the thread. With `abandon` other ranks' shards are not waited for: they may be lost."""
        if abandon:
            self._abandoned.set()
        try:
            self.wait()
        except StorageError:
            if not abandon:
                raise
        finally:
            self._thread.shutdown()

    def _write(self, step: int, parts: dict[str, dict[str, Any]], document: dict[str, Any], started: float) -> None:
        final = self.folder / f"step-{step:08d}"
        temporary = _temporary(final)
        name = f"shard-{self.mesh.rank:05d}"
        with storage_errors(final):
            try:
                # Never the folders above: a storage that has vanished must not come back empty.
                self.folder.mkdir(exist_ok=True)
                temporary.mkdir(exist_ok=True)
                path = temporary / f"{name}.safetensors"
                save_file({tensor: self._copies[tensor] for tensor in parts}, path)
                fsync(path)
                write_json(temporary / f"{name}.json", {"sha256": digest_file(path), "parts": parts})
                if self.mesh.rank == 0:
                    self._commit(final, document)
                    self.on_written(step, time.monotonic() - started)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def _commit(self, final: Path, document: dict[str, Any]) -> None:
        """Once all shards are there: describes them, renames the folder, and removes what is too old."""
        temporary = _temporary(final)
        shards: dict[str, str] = {}
        tensors: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + _SHARDS_TIMEOUT_S
        for rank in range(self.mesh.layout.size):
            note = temporary / f"shard-{rank:05d}.json"
            while not note.exists():
                if self._abandoned.is_set() or time.monotonic() > deadline or not temporary.exists():
                    raise StorageError(f"{final}: worker {rank} has not written its part of the checkpoint")
                time.sleep(_POLL_S)
            found = read_json(note)
            shard = f"{note.stem}.safetensors"
            shards[shard] = found["sha256"]
            for name, part in found["parts"].items():
                entry = tensors.setdefault(name, {"shape": part["shape"], "dim": part["dim"], "parts": []})
                entry["parts"].append({"shard": shard, "start": part["start"]})
            note.unlink()
        write_json(temporary / "state.json", document | {"tensors": tensors, "shards": shards})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync(self.folder)
        for old in _steps(self.folder)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, expected: Position, shapes: dict[str, tuple[int, ...]]) -> "Checkpoint | None":
        """The newest whole checkpoint, or None. Collective: rank 0 chooses.

        Args:
            expected: of this training; the step may be any.
            shapes: of the model's parameters and buffers, by their names in the state.

        Raises:
            SpecError: the checkpoint is of another model, other data, or another order of them.
        """
        found = _newest(self.folder) if self.mesh.rank == 0 else None
        if found is not None:
            _check_belongs(found, expected, shapes)
        step = torch.tensor([-1 if found is None else int(found.document["step"])])
        if self.mesh.layout.size > 1:
            step = self.mesh.broadcast(step.to(self.mesh.device), 0).cpu()
        if self.mesh.rank != 0 and step.item() >= 0:
            found = Checkpoint(self.folder / f"step-{step.item():08d}")
        return found

    def remove_remains(self) -> None:
        """Clears away what an attempt that was broken off left. Collective."""
        if self.mesh.rank == 0:
            for remains in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(remains, ignore_errors=True)
        self.mesh.barrier()


class Checkpoint:
    """A complete checkpoint, read piece by piece.

    Raises:
        OSError, ValueError, KeyError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: dict[str, Any] = read_json(folder / "state.json")
        self._tensors: dict[str, Any] = self.document["tensors"]

    def verify(self) -> None:
        """Compares every shard to its digest. Raises ValueError."""
        for shard, digest in self.document["shards"].items():
            if digest_file(self.folder / shard) != digest:
                raise ValueError(f"{shard} does not match its digest")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters and buffers, by name; the optimizer's states follow from them."""
        return {
            name: tuple(entry["shape"])
            for name, entry in self._tensors.items()
            if name.startswith(("param/", "buffer/"))
        }

    def read(self, name: str, dim: int | None, start: int, length: int) -> torch.Tensor:
        """A tensor, or `length` places of it from `start` along `dim`; only these are read."""
        stored = self._tensors[name]
        if stored["dim"] is None:
            with self._open(stored["parts"][0]["shard"]) as shard:
                return _slice(shard, name, dim, start, start + length)
        along = stored["dim"]
        if dim not in (None, along):
            raise ValueError(f"{name} is stored cut along {along}, and asked for along {dim}")
        if dim is None:
            start, length = 0, stored["shape"][along]
        pieces = []
        for part in sorted(stored["parts"], key=lambda part: int(part["start"])):
            with self._open(part["shard"]) as shard:
                size = shard.get_slice(name).get_shape()[along]
                first, last = max(start, part["start"]), min(start + length, part["start"] + size)
                if first < last:
                    pieces.append(_slice(shard, name, along, first - part["start"], last - part["start"]))
        return torch.cat(pieces, dim=along)

    def _open(self, shard: str) -> Any:
        return safe_open(self.folder / shard, framework="pt")


def _slice(shard: Any, name: str, dim: int | None, first: int, last: int) -> torch.Tensor:
    if dim is None:
        return shard.get_tensor(name)
    return shard.get_slice(name)[(*[slice(None)] * dim, slice(first, last))]


def _newest(folder: Path) -> Checkpoint | None:
    for path in reversed(_steps(folder)):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("checkpoint %s is damaged (%s); falling back to the one before", path, error)
            continue
        return checkpoint
    return None


_TOLD = {
    "fingerprint": "with other data",
    "batch_size": "with another batch size",
    "seed": "with another seed",
}


def _check_belongs(checkpoint: Checkpoint, expected: Position, shapes: dict[str, tuple[int, ...]]) -> None:
    for key, words in _TOLD.items():
        found, wanted = checkpoint.document[key], getattr(expected, key)
        if found != wanted:
            raise _of_another(checkpoint, f"it was trained {words} ({key} {found}, and here {wanted})")
    stored = checkpoint.shapes()
    for name in sorted(stored.keys() | shapes.keys()):
        if stored.get(name) != shapes.get(name):
            raise _of_another(
                checkpoint,
                f"it is of another model: {name} has the shape {stored.get(name)}, and here {shapes.get(name)}",
            )


def _of_another(checkpoint: Checkpoint, reason: str) -> SpecError:
    return SpecError.at("", f"the checkpoint {checkpoint.folder} can't be taken up: {reason}")


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp")


def _shares(held: Iterator[Held], mesh: Mesh) -> Iterator[tuple[Held, bool]]:
    """Each tensor, and whether this rank writes it.

    Of the ranks that hold the same, the one with the least to write so far writes: all of them reckon alike.
    """
    layout, place = mesh.layout, mesh.coordinate
    load = {(data, tensor): 0 for data in range(layout.data) for tensor in range(layout.tensor)}
    for tensor in held:
        size = tensor.value.numel() * tensor.value.element_size()
        if tensor.dim is None:
            writer = min(load, key=lambda rank: (load[rank], rank))
            load[writer] += size
            yield tensor, writer == (place.data, place.tensor)
        else:
            data = min(range(layout.data), key=lambda data: sum(load[data, peer] for peer in range(layout.tensor)))
            for peer in range(layout.tensor):
                load[data, peer] += size
            yield tensor, data == place.data
