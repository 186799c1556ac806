"""Low rank: the nearest matrix of a rank, fewer multiplications or none, the same after a reload, exported."""

from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.compress import prune_structured
from jobs.compress.low_rank import low_rank_copy
from jobs.errors import FactorizationFailed
from jobs.models.registry import summarize
from jobs.models.structure import LowRank
from tests.jobs.compress.compressed import check_onnx, check_same_after_reload, num_params
from tests.jobs.models.small_models import FAMILIES, made, samples


def layer_of_rank(rank: int, inputs: int = 24, outputs: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, rank) @ torch.randn(rank, inputs))
    return nn.Sequential(layer)


def test_a_layer_of_low_rank_is_found_to_be_one() -> None:
    model = layer_of_rank(3)
    factored, ranks = low_rank_copy(model, energy=0.99999, min_size=8)
    assert ranks == {"0": 3}
    assert num_params(factored) == 3 * (24 + 16) + 16
    x = torch.randn(5, 24)
    torch.testing.assert_close(factored(x), model(x), rtol=1e-4, atol=1e-4)
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.7])
def test_the_energy_is_kept_with_no_more_rank_than_it_takes(energy: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64))
    factored, ranks = low_rank_copy(model, energy=energy, min_size=8)
    weight = model[0].weight.detach()
    product = factored[0].expand.weight.detach() @ factored[0].reduce.weight.detach()
    left = 1.0 - (weight - product).square().sum() / weight.square().sum()
    values = torch.linalg.svdvals(weight).square()
    assert left >= energy - 1e-5
    assert values[: ranks["0"] - 1].sum() / values.sum() < energy


def test_a_layer_that_needs_nearly_its_whole_rank_stays() -> None:
    with pytest.raises(FactorizationFailed, match="a lower energy"):
        low_rank_copy(nn.Sequential(nn.Linear(64, 64)), energy=0.95, min_size=8)


def test_what_would_cost_more_or_is_small_or_named_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 64))
    _, ranks = low_rank_copy(model, rank_ratio=0.25, min_size=16)
    assert ranks == {"0": 16}
    for options in ({"rank_ratio": 0.5}, {"rank_ratio": 0.25, "ignore": ["0"]}, {"rank_ratio": 0.1, "min_size": 65}):
        with pytest.raises(FactorizationFailed, match="no linear layer"):
            low_rank_copy(model, **{"min_size": 16, **options})


def test_convolutions_keep_their_stride_and_padding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, groups=16, padding=1))
    factored, ranks = low_rank_copy(model, rank_ratio=0.5, min_size=4, convolutions=True)
    assert ranks == {"0": 8}  # grouped ones stay
    x = torch.randn(2, 8, 7, 7)
    assert factored(x).shape == model(x).shape
    with torch.no_grad():  # of rank 8 it is exact
        matrix = torch.randn(16, 8) @ torch.randn(8, 72)
        model[0].weight.copy_(matrix.view(16, 8, 3, 3))
    factored, _ = low_rank_copy(model, rank_ratio=0.5, min_size=4, convolutions=True)
    torch.testing.assert_close(factored(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["transformer of language", pytest.param("resnet", marks=pytest.mark.slow)])
def test_a_model_of_low_rank_is_stored_exactly_and_exported(family: str, tmp_path: Path) -> None:
    model, signature = FAMILIES[family]
    pruned = prune_structured(made(family), signature, ratio=0.25)
    factored, ranks = low_rank_copy(pruned, rank_ratio=0.25, min_size=6, convolutions=True)
    assert sum(isinstance(layer, LowRank) for layer in factored.modules()) == len(ranks) >= 4
    check_same_after_reload(family, factored, tmp_path / "model", low_rank=ranks, pruned=True)
    figures = check_onnx(family, factored, tmp_path / "model.onnx")
    assert figures["macs"] < 0.8 * summarize(model, signature).macs
    if signature.per_step:  # tied to the embedding, the classifier stays as it is
        assert factored.get_parameter("classifier.1.weight") is factored.get_parameter("embedding.1.weight")
    assert torch.isfinite(factored(samples(signature, [9, 2]))).all()
