"""A model that is divided over the workers, for predictions alone: no optimizer, no gradients, no whole copy anywhere.

Layers are divided over tensor peers as in training (`split_module`), blocks over the stages of a pipeline; data ranks
take different samples. Each worker reads what it holds, and nothing else, from the stored model. Stages hand on what
their blocks give, point to point: while one computes a batch, the stage before it computes the next.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
import torch
from torch import nn

from jobs.context import Context
from jobs.exchange import Exchange, share
from jobs.layout import stage_bounds
from jobs.measure.work import Progress, kept_of
from jobs.models.build import shared_tensors
from jobs.models.slices import StoredModel
from jobs.requests import DividedPredictRequest
from jobs.train.mesh import Mesh, warm_up
from jobs.train.tensor import Peers, split_module

BATCH = 256
BATCH_VALUES = 1 << 24
"""Outputs that a batch may have: the logits of a language model are a thousand times its input."""


def predict(context: Context, request: DividedPredictRequest) -> None:
    """Predicts with a divided model; whoever has outputs leaves what is kept of them in the exchange. Collective."""
    warm_up(context)
    layout = request.layout
    mesh = Mesh(layout, context.rank)
    stored = StoredModel(request.model)
    part = DividedModel(stored, mesh, request.block_costs)
    x = np.load(request.samples, mmap_mode="r")
    own = share(len(x), mesh.coordinate.data, layout.data)
    size = max(1, min(BATCH, BATCH_VALUES // prod(stored.recipe.signature.output_shape)))
    batches = [x[first : min(first + size, own.stop)] for first in range(own.start, own.stop, size)]
    progress = Progress(context, len(own))
    kept = []
    outputs = part.outputs(torch.from_numpy(np.array(batch)) for batch in batches)
    for batch, found in zip(batches, outputs, strict=True):
        if found is not None and mesh.answers:
            kept.append(kept_of(found.cpu().numpy(), batch, request.last_code))
        progress.add(len(batch))
    if mesh.answers:
        arrays = {"outputs": np.concatenate(kept)} if kept else {}
        Exchange(request.folder, layout.data).give(mesh.coordinate.data, arrays)
    mesh.close()  # not after an error: others may wait in its groups, and whoever drives the work ends them


class DividedModel:
    """This rank's part of a stored model, read from its file slice by slice.

    Args:
        block_costs: what each block costs to compute; the stages are balanced by it. Unused without a pipeline.

    Raises ArtifactError for files that are damaged.
    """

    def __init__(self, stored: StoredModel, mesh: Mesh, block_costs: tuple[int, ...]) -> None:
        self.mesh = mesh
        whole = stored.skeleton()
        names = shared_tensors(whole)
        self.module = _stage(whole, mesh, block_costs)
        cut: dict[str, int] = {}
        if mesh.layout.tensor > 1:
            peers = Peers(mesh.tensor_group, mesh.coordinate.tensor, mesh.layout.tensor)
            cut = split_module(self.module, peers)
        self._fill(stored, names, cut)
        self.module.to(mesh.device).eval()

    def outputs(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor | None]:
        """The model's outputs, in fp32, batch by batch; None where another stage has them. Collective.

        All ranks of a tensor group and of a pipeline give the same batches; different data ranks may give fewer.
        """
        stage, last = self.mesh.coordinate.pipeline, self.mesh.layout.pipeline - 1
        with torch.no_grad():
            for batch in batches:
                state = self.mesh.receive(stage - 1) if stage else batch.to(self.mesh.device)
                state = self.module(state)
                if stage == last:
                    yield state.float()
                else:
                    self.mesh.send(state, stage + 1)
                    yield None

    def _fill(self, stored: StoredModel, names: dict[str, str], cut: dict[str, int]) -> None:
        """Gives every tensor its values: tied ones the same, divided ones this rank's part of them."""
        layout, place = self.mesh.layout, self.mesh.coordinate
        filled: dict[int, torch.Tensor] = {}
        empty = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        for name, slot in empty:
            logical = names.get(name, name)
            if logical not in stored.shapes:
                continue  # a buffer that is not stored: the constructor has computed it
            if id(slot) not in filled:
                dim = cut.get(name)
                own = range(0) if dim is None else share(stored.shapes[logical][dim], place.tensor, layout.tensor)
                values = stored.read(logical, dim, own.start, own.stop).to(slot.dtype)
                parameter = isinstance(slot, nn.Parameter)
                filled[id(slot)] = nn.Parameter(values, requires_grad=False) if parameter else values
            owner, _, attribute = name.rpartition(".")
            setattr(self.module.get_submodule(owner), attribute, filled[id(slot)])


def _stage(whole: nn.Module, mesh: Mesh, block_costs: tuple[int, ...]) -> nn.Module:
    """The blocks that this rank computes."""
    if mesh.layout.pipeline == 1:
        return whole
    blocks = list(whole.named_children())
    own = stage_bounds(block_costs, mesh.layout.pipeline)[mesh.coordinate.pipeline]
    return nn.Sequential(OrderedDict(blocks[index] for index in own))
