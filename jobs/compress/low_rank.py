"""Low rank: a large layer as the product of two thin ones, W (outputs, inputs) ≈ A (outputs, r) · B (r, inputs).

The truncated singular value decomposition W = U Σ Vᵀ is the nearest of rank r in the sum of squares (Eckart & Young
1936): A = U √Σ and B = √Σ Vᵀ of the r largest singular values. It pays where r · (inputs + outputs) < inputs · outputs.
A convolution is taken as its matrix (outputs, inputs · kernel area), which makes it one with r channels and one of 1×1
(Denton et al. 2014).
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from jobs.errors import FactorizationFailed
from jobs.models.build import shared_tensors
from jobs.models.prunable import matches
from jobs.models.structure import factorize


def low_rank_copy(
    model: nn.Module,
    *,
    energy: float | None = None,
    rank_ratio: float | None = None,
    min_size: int = 64,
    convolutions: bool = False,
    ignore: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, int]]:
    """A copy of `model` with low-rank layers, and the rank of each; `model` stays as it is.

    Args:
        energy: keep the smallest rank with this share of the squared singular values, or
        rank_ratio: this share of the layer's smaller side.
        min_size: layers whose smaller side is less stay as they are.
        convolutions: ungrouped convolutions too.
        ignore: names of layers, or of what they are in, that stay as they are.

    Raises FactorizationFailed where no layer would need fewer multiplications.
    """
    assert (energy is None) != (rank_ratio is None)
    copied = copy.deepcopy(model)
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    shared = shared_tensors(copied)
    tied = {name.rpartition(".")[0] for name in (*shared, *shared.values())}
    ranks: dict[str, int] = {}
    for name, layer in list(copied.named_modules()):
        if type(layer) not in kinds or name in tied or not name or matches(name, ignore):
            continue
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        matrix = layer.weight.detach().flatten(1)
        grouped = isinstance(layer, nn.Conv2d) and layer.groups != 1
        if min(matrix.shape) < min_size or grouped:
            continue
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        rank = _rank(values, energy, rank_ratio)
        if rank * sum(matrix.shape) >= matrix.numel():
            continue
        roots = values[:rank].sqrt()
        factors = factorize(copied, name, rank)
        factors.train(layer.training)
        with torch.no_grad():
            first, second = factors.reduce.weight, factors.expand.weight
            assert isinstance(first, nn.Parameter)
            assert isinstance(second, nn.Parameter)
            first.copy_((roots[:, None] * right[:rank]).view_as(first))
            second.copy_((left[:, :rank] * roots).view_as(second))
            if layer.bias is not None:
                assert isinstance(factors.expand.bias, nn.Parameter)
                factors.expand.bias.copy_(layer.bias)
        ranks[name] = rank
    if not ranks:
        what = "linear layer or convolution" if convolutions else "linear layer"
        raise FactorizationFailed(
            f"no {what} with at least {min_size} inputs and outputs has a rank so low that two need fewer "
            "multiplications; try a lower energy or rank_ratio"
        )
    return copied, ranks


def _rank(values: torch.Tensor, energy: float | None, rank_ratio: float | None) -> int:
    """The number of singular values, given in descending order, to keep."""
    if rank_ratio is not None:
        return max(1, round(rank_ratio * len(values)))
    assert energy is not None
    shares = values.square().cumsum(0) / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    return min(len(values), 1 + int((shares < energy).sum()))
