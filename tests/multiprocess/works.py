"""Works that tests send to ranks."""

import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from jobs.context import Context
from jobs.data import TrainingBatches
from jobs.layout import ParallelLayout, share_batch
from jobs.models.build import build
from jobs.models.slices import StoredModel
from jobs.records import Signature
from jobs.requests import TrainRequest
from jobs.spec.model import TransformerModel
from jobs.spec.train import AdamW
from jobs.train import loop
from jobs.train.engine import Batch, Engine
from jobs.train.inference import DividedModel
from jobs.train.mesh import Mesh, warm_up
from jobs.train.work import train


@dataclass(frozen=True)
class Until:
    """A training that is to end at the first look at step `step` or after, leaving checkpoints."""

    request: TrainRequest
    step: int


class _Ended:
    """A context that wants the training to end once a step is reached."""

    def __init__(self, context: Context, step: int) -> None:
        self.rank, self.size, self.num_threads = context.rank, context.size, context.num_threads
        self._looks, self._step = 0, step

    def report(self, measurement: dict[str, Any]) -> None:
        pass

    def stop_requested(self) -> bool:
        self._looks += loop.SYNC_EVERY_STEPS
        return self._looks >= self._step

    def beat(self) -> None:
        pass


def train_until(context: Context, request: Until) -> list[tuple[int, tuple[int, ...]]]:
    """Trains, and ends early. Returns (step, sample ids) of each micro-batch, if this rank speaks for its samples."""
    return _recorded(_Ended(context, request.step), request.request)


def train_recorded(context: Context, request: TrainRequest) -> list[tuple[int, tuple[int, ...]]]:
    """Trains to the end; returns what `train_until` returns."""
    return _recorded(context, request)


def _recorded(context: Context, request: TrainRequest) -> list[tuple[int, tuple[int, ...]]]:
    seen: list[tuple[int, tuple[int, ...]]] = []
    with _listening(seen):
        train(context, request)
    place = request.recipe.layout.coordinate(context.rank)
    return seen if place.tensor == 0 and place.pipeline == 0 else []


@contextmanager
def _listening(seen: list[tuple[int, tuple[int, ...]]]) -> Iterator[None]:
    original = TrainingBatches.share

    def share(self: TrainingBatches, step: int, *place: int) -> Any:
        found = original(self, step, *place)
        seen.append((step, tuple(found[2].tolist())))
        return found

    interval = loop.SYNC_EVERY_S
    TrainingBatches.share = share  # type: ignore[method-assign]
    loop.SYNC_EVERY_S = 1e9  # looks at every tenth step, however slow the machine is
    try:
        yield
    finally:
        TrainingBatches.share = original  # type: ignore[method-assign]
        loop.SYNC_EVERY_S = interval


def network(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """A model of a user's own, whose first block has no parameters, and whose last keeps a constant of its own."""
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(*input_shape, 16), Shifted()), nn.Linear(16, outputs))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.linspace(-1.0, 1.0, 16)  # no buffer: stored nowhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + self.shift)


@dataclass(frozen=True)
class Weighed:
    """A model to train for three steps on made-up tokens, in a layout."""

    model: TransformerModel
    signature: Signature
    layout: ParallelLayout
    batch_size: int


def memory_of(context: Context, request: Weighed) -> dict[str, int]:
    """Bytes of live tensors of this rank: `resident` after the third step, `peak` while it goes on."""
    warm_up(context)
    share = share_batch(request.batch_size, request.layout.data, None)
    gc.collect()
    before = live_tensor_bytes()
    mesh = Mesh(request.layout, context.rank)
    engine = Engine(
        build(request.model, request.signature, seed=0),
        AdamW(name="adamw"),
        share,
        mesh,
        precision="fp32",
        gradient_clip=None,
    )
    draw = torch.Generator().manual_seed(mesh.coordinate.data)
    tokens = torch.randint(1, request.signature.outputs, (share.micro, *request.signature.input_shape), generator=draw)
    ids = np.arange(share.micro)
    batch = Batch(0, 0, part=lambda index: (tokens, tokens, ids), ids=lambda index: ids)
    for _ in range(2):
        engine.train_batch(batch, _token_loss)
    gc.collect()
    start = live_tensor_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.train_batch(batch, _token_loss)
    peak = start + _highest(profiler)
    gc.collect()
    resident = live_tensor_bytes()
    engine.close()
    mesh.close()
    return {"resident": resident - before, "peak": peak - before}


def memory_of_division(context: Context, request: tuple[Path, ParallelLayout, tuple[int, ...]]) -> dict[str, int]:
    """Bytes of this rank's part of a stored model, and the peak of what was allocated while it was read.

    The part's own storages, views as what they keep alive: other tests' remains may go meanwhile.
    """
    folder, layout, block_costs = request
    warm_up(context)
    gc.collect()
    mesh = Mesh(layout, context.rank)
    stored = StoredModel(folder)  # maps the file, which the profiler would take for memory
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        part = DividedModel(stored, mesh, block_costs)
    tensors = [*part.module.parameters(), *part.module.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    resident = sum(storages.values())
    assert all(parameter.device.type != "meta" for parameter in part.module.parameters())
    mesh.close()
    return {"resident": resident, "peak": _highest(profiler)}


def _token_loss(outputs: torch.Tensor, targets: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _highest(profiler: profile) -> int:
    """The largest sum of what was allocated and not yet freed since the profile began."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(int(event["args"]["Bytes"]) for event in events if event["args"]["Device Type"] == 0))


def live_tensor_bytes() -> int:
    """Unique storages of all tensors that Python knows, gradients included."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
