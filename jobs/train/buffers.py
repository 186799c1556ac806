"""What data ranks hold besides parameters: made one again before it is evaluated or stored.

Our own batch normalization takes the statistics of the whole global batch on every rank (`jobs.models.invariant`). A
stock layer in a model of the user's own sees its rank's samples alone, so the ranks' running statistics come apart. The
file can hold but one set of them, and every rank has to be evaluated with that one.
"""

import torch
from torch import nn

from jobs.models.invariant import GROUPED
from jobs.train.mesh import Mesh

AVERAGED = ("running_mean", "running_var")
"""Buffers of which the ranks' mean is taken: moving averages are linear, so the mean of the ranks' averages is the
average of their means, and how often it is taken on the way makes no difference."""


def agree_on_buffers(module: nn.Module, mesh: Mesh, *, others: bool) -> None:
    """Gives all data ranks the same running statistics of normalization, their mean over the ranks. Collective.

    Args:
        others: all other floating-point buffers become those of the first data rank, whose the file holds. What a layer
            makes of its own buffer later is not known, so this is for points of the training that are part of its spec.

    Buffers that are the same on all ranks keep their values.
    """
    if mesh.layout.data == 1:
        return
    own = {id(buffer) for layer in module.modules() if isinstance(layer, GROUPED) for buffer in layer.buffers()}
    named = [
        (_is_averaged(name), buffer)
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and id(buffer) not in own and (others or _is_averaged(name))
    ]
    if not named:
        return
    first, degree = mesh.coordinate.data == 0, mesh.layout.data
    with torch.no_grad():
        # One collective for all of them, in doubles: n equal floats, added up and divided by n, are that float again.
        given = [
            b.double() if averaged else b.double() * degree if first else torch.zeros_like(b, dtype=torch.float64)
            for averaged, b in named
        ]
        found = mesh.mean_over_data(torch.cat([values.flatten() for values in given]))
        for (_, buffer), values in zip(named, found.split([b.numel() for _, b in named]), strict=True):
            buffer.copy_(values.view_as(buffer))


def _is_averaged(name: str) -> bool:
    return name.rpartition(".")[2] in AVERAGED
