"""Works that tests send to ranks."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from jobs.context import Context
from jobs.data import TrainingBatches
from jobs.requests import TrainRequest
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
        # Asked at every tenth step.
        self._looks += 10
        return self._looks >= self._step


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

    TrainingBatches.share = share  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingBatches.share = original  # type: ignore[method-assign]


def live_bytes_after(context: Context, request: TrainRequest) -> int:
    """Trains for a few steps; the bytes of all live tensors of this rank after the third one."""
    found: list[int] = []

    class Measuring:
        rank, size, num_threads = context.rank, context.size, context.num_threads

        def report(self, measurement: dict[str, Any]) -> None:
            pass

        def stop_requested(self) -> bool:
            found.append(live_tensor_bytes())
            return False

    gc.collect()
    before = live_tensor_bytes()
    train(Measuring(), replace(request, recipe=replace(request.recipe)))
    return found[0] - before


def live_tensor_bytes() -> int:
    """Unique storages of all tensors that Python knows, gradients included."""
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            for tensor in (thing, thing.grad):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
