"""Batch normalization that follows a layer, seen as part of it: in evaluation it only scales and shifts its outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Normed:
    """A normalization right behind a convolution or a linear layer.

    Attributes:
        layer, name: where the two are, as `named_modules` says it.
        had_bias: whether the layer had one when it was found.
    """

    layer: str
    name: str
    norm: nn.modules.batchnorm._BatchNorm
    had_bias: bool


def normed_layers(module: nn.Module, kinds: tuple[type[nn.Module], ...] = LAYERS) -> Iterator[Normed]:
    """Where batch normalization with scale, shift and running statistics stands in sequence behind a layer of `kinds`.

    Of our own families all stand so.
    """
    for prefix, parent in list(module.named_modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        at = f"{prefix}." if prefix else ""
        for (before, layer), (name, norm) in pairwise(list(parent.named_children())):
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(layer, kinds):
                continue
            if norm.affine and norm.track_running_stats:
                yield Normed(at + before, at + name, norm, layer.bias is not None)


@torch.no_grad()
def gain_of(norm: nn.modules.batchnorm._BatchNorm) -> torch.Tensor:
    """What it multiplies each channel by, in evaluation: (channels,)."""
    assert norm.running_var is not None
    return norm.weight / (norm.running_var + norm.eps).sqrt()


@torch.no_grad()
def restore_norms(module: nn.Module, folded: Sequence[Normed]) -> None:
    """Puts back what `fold_norms` took away, with nothing but the shift to do: a channel costs one number. In place."""
    for each in folded:
        layer: Any = module.get_submodule(each.layer)
        norm: Any = each.norm
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.weight.fill_((1.0 + norm.eps) ** 0.5)
        norm.bias.copy_(layer.bias)
        layer.bias = nn.Parameter(torch.zeros_like(norm.bias)) if each.had_bias else None
        module.set_submodule(each.name, norm)


@torch.no_grad()
def settle_norms(module: nn.Module) -> None:
    """Moves the statistics of batch normalization into its scale and shift: mean 0 and variance 1 are left. In place.

    In evaluation the layer computes the same; a channel then needs two numbers instead of four.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine and layer.running_var is not None:
            assert layer.running_mean is not None
            factor = gain_of(layer)
            layer.bias.sub_(layer.running_mean * factor)
            layer.weight.copy_(factor * (1.0 + layer.eps) ** 0.5)
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0)
