"""Single weights set to zero: by magnitude, more at each step, or n of every m; and how they stay zero in training.

A masked weight begins recovery at exactly zero with an optimizer state of exactly zero, and its gradient is multiplied
by zero before anything sees it. Then every update of SGD, Adam and AdamW, weight decay included, is exactly zero too,
whatever ZeRO does with the tensors: nothing has to be put right afterwards.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from jobs.errors import JobFailed, SpecError
from jobs.models.modules import Positions
from jobs.models.prunable import matches

Masks = dict[str, torch.Tensor]
"""By parameter: True where a weight stays."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, Positions)
_SPARSE = 0.2
_PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)


def sparsity_at(step: int, steps: int, final: float) -> float:
    """The share of zeros after step 1 … steps: fast at first, while much is superfluous (Zhu & Gupta 2017).

    >>> [round(sparsity_at(step, 4, 0.8), 3) for step in (1, 2, 3, 4)]
    [0.462, 0.7, 0.788, 0.8]
    """
    return final * (1.0 - (1.0 - step / steps) ** 3)


def magnitude_masks(
    model: nn.Module, sparsity: float, *, global_pruning: bool = False, ignore: Sequence[str] = ()
) -> Masks:
    """Masks that leave out the smallest weights of all matrices, kernels and tables of embeddings; biases stay.

    No layer is pruned away: each keeps at least its largest weight.

    Args:
        sparsity: share of zeros in each tensor, or in all of them together.
        global_pruning: compare weights across layers.
        ignore: names of layers, or of what they are in, that stay whole.

    Raises SpecError where nothing is left to mask.
    """
    weights = _weights(model, ignore)
    if not weights:
        raise _nothing(ignore)
    if not global_pruning:
        return {name: _largest(weight.detach().abs(), sparsity) for name, weight in weights.items()}
    flat = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    kept = _largest(flat, sparsity)
    masks: Masks = {}
    for (name, weight), part in zip(weights.items(), kept.split([w.numel() for w in weights.values()]), strict=True):
        part[weight.detach().abs().flatten().argmax()] = True
        masks[name] = part.view(weight.shape)
    return masks


def _largest(magnitudes: torch.Tensor, sparsity: float) -> torch.Tensor:
    """A mask without the share of the smallest; of equal ones, the first in memory go. One weight stays in any case."""
    going = min(round(sparsity * magnitudes.numel()), magnitudes.numel() - 1)
    gone = torch.argsort(magnitudes.flatten(), stable=True)[:going]
    kept = torch.ones(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    kept[gone] = False
    return kept.view(magnitudes.shape)


def nm_masks(model: nn.Module, n: int, m: int, *, ignore: Sequence[str] = ()) -> Masks:
    """Masks that leave n of every m consecutive inputs of each output (Mishra et al. 2021), the largest.

    Layers whose number of inputs is no multiple of m stay whole. Raises SpecError where no layer has such a number.
    """
    products = {name for name, layer in model.named_modules() if isinstance(layer, _PRODUCTS)}
    masks: Masks = {}
    for name, weight in _weights(model, ignore).items():
        if name.rpartition(".")[0] not in products or weight.shape[1] % m:
            continue
        groups = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, m))
        order = torch.argsort(groups, dim=-1, stable=True)
        kept = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, order[..., : m - n], value=False)
        masks[name] = kept.flatten(-2).movedim(-1, 1).contiguous()
    if not masks:
        raise SpecError.at(
            "compress.prune.m", "no layer's number of inputs is a multiple of it", m, "a divisor of some layer's inputs"
        )
    return masks


def _weights(model: nn.Module, ignore: Sequence[str]) -> dict[str, nn.Parameter]:
    """What may be masked, tied parameters once: a layer left whole keeps a parameter that it shares."""
    layers = dict(model.named_modules())
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = {}
    for parameter, known in names.items():
        owners = [each.rpartition(".")[0] for each in known]
        whole = any(matches(owner, ignore) or isinstance(layers[owner], _NORMS) for owner in owners)
        if parameter.dim() >= 2 and not whole:
            found[known[0]] = parameter
    return found


def _nothing(ignore: Sequence[str]) -> SpecError:
    return SpecError.at("compress.prune.ignore", "with these left whole, no layer remains to be pruned", list(ignore))


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Sets the masked weights to zero."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0.0)


def hold_zeros(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Lets no gradient reach the masked weights, in whatever training these parameters go through."""
    for name, mask in masks.items():
        model.get_parameter(name).register_hook(lambda gradient, mask=mask: _masked(gradient, mask))


def _masked(gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return gradient.masked_fill(~mask.to(gradient.device), 0.0)


def check_zeros(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Raises JobFailed where a masked weight is not exactly zero."""
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        if wrong := int(torch.count_nonzero(weight[~mask.to(weight.device)])):
            raise JobFailed(f"{wrong} weights of {name} were pruned, and are not zero after recovery")


def zero_masks(model: nn.Module) -> Masks:
    """Masks of the weights that are zero already, in tensors of which a fifth or more is: what pruning has left."""
    found = {name: weight.detach() != 0 for name, weight in _weights(model, ()).items()}
    return {name: mask for name, mask in found.items() if mask.float().mean() <= 1.0 - _SPARSE}
