"""Gradual magnitude pruning: single weights become zero while the model trains on (Zhu & Gupta 2017).

A weight under training is `where(mask, original, 0)`. The mask is a buffer: it is in checkpoints, and the gradient of
what it hides is zero whatever the optimizer and the ZeRO stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from jobs.compress.norms import gain_of, normed_layers

UPDATE_EVERY = 32
"""Steps between two looks at the magnitudes, while the sparsity grows."""
RAMP = 0.4
"""The share of the steps in which it grows; in the rest the masks stay as they are."""


class Masked(nn.Module):
    """Hides the weights where `mask` is False."""

    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def weighted_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that multiply by a matrix of weights of their own: convolutions and linear layers, in order."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            yield name, layer


def weight_of(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def mask_weights(module: nn.Module) -> None:
    """Puts a mask, so far of ones, on the weights of every convolution and linear layer. In place."""
    for _, layer in weighted_layers(module):
        parametrize.register_parametrization(layer, "weight", Masked(weight_of(layer)))


def bake_weights(module: nn.Module) -> None:
    """Makes plain weights of what masks or codebooks compute. In place; copies share its layers' classes, and break."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def sparsity_at(step: int, total_steps: int, target: float) -> float:
    """The share of zeros before a step: target · (1 - (1 - step / ramp)³), and `target` after the ramp."""
    ramp = max(1, int(RAMP * total_steps))
    return target * (1.0 - (1.0 - min(1.0, step / ramp)) ** 3)


@dataclass(frozen=True)
class GradualPruning:
    """What a training calls before each step: hides ever more weights, up to the share `sparsity` of all."""

    sparsity: float

    def __call__(self, module: nn.Module, step: int, total_steps: int) -> None:
        ramp = max(1, int(RAMP * total_steps))
        last = -(-ramp // UPDATE_EVERY) * UPDATE_EVERY
        if step == total_steps - 1 or (step % UPDATE_EVERY == 0 and step <= last):
            # Before the last step the target is reached, however short the training.
            share = self.sparsity if step == total_steps - 1 else sparsity_at(step, total_steps, self.sparsity)
            hide_smallest(module, share)


@torch.no_grad()
def hide_smallest(module: nn.Module, sparsity: float) -> None:
    """Sets the masks so that the share `sparsity` of all weights is zero: those of the lowest scores, of all layers.

    What is hidden stays so, and no layer loses its largest weight. A weight counts as what batch normalization behind
    its layer makes of it, which alone does not depend on how large the weights of a channel happen to be.
    """
    layers = [layer for _, layer in weighted_layers(module)]
    gains = {module.get_submodule(each.layer): gain_of(each.norm) for each in normed_layers(module)}
    found = [layer_scores(_effective(weight_of(layer).detach(), gains.get(layer))) for layer in layers]
    flat = torch.cat([scores.flatten() for scores in found])
    count = round(sparsity * len(flat))
    if count == 0:
        return
    threshold = torch.kthvalue(flat, count).values
    for layer, scores in zip(layers, found, strict=True):
        mask = layer.parametrizations.weight[0].mask  # type: ignore[union-attr, index]
        mask.copy_((scores > threshold) | ((scores == scores.max()) & (scores > 0)))


def _effective(weight: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    return weight if gain is None else weight * gain.view(-1, *[1] * (weight.dim() - 1))


def layer_scores(weight: torch.Tensor) -> torch.Tensor:
    """w² divided by the sum of the squares of all weights of the layer that are no smaller (Lee et al. 2021).

    Magnitudes of different layers do not compare: by them alone, small layers with small weights would be emptied.
    The largest weight of every layer has the score 1.

    >>> layer_scores(torch.tensor([1.0, 2.0]))
    tensor([0.2000, 1.0000])
    """
    squares = weight.flatten().double().square()
    order = squares.argsort(descending=True, stable=True)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / squares[order].cumsum(0).clamp_min(1e-300)
    return scores.float().view_as(weight)
