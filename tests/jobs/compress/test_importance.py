"""Importance finds the channel that was planted, and looks at nothing but the samples that it gets."""

from typing import Literal

import pytest
import torch
from torch import nn

from jobs.compress.groups import find_groups
from jobs.compress.importance import Samples, score
from jobs.compress.prune import choose_cut, sensitive_layers
from jobs.records import Signature
from tests.jobs.compress.compressed import PICKED, data_of
from tests.jobs.models.small_models import FAMILIES, made

VECTOR = Signature(kind="vector", input_shape=(6,), outputs=3)


def cross_entropy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, y, reduction="sum")


def planted() -> tuple[nn.Sequential, Samples]:
    """Of 8 neurons the fourth never fires, though its weights are the largest of all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(30, 6)  # positive, so that a negative neuron is off
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
        model[0].weight[3] = -5.0
        model[2].weight[:, 3] = 5.0
    return model, Samples(((x[:15], torch.arange(15) % 3), (x[15:], torch.arange(15) % 3)), cross_entropy, 30.0)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_a_planted_useless_neuron_goes(importance: Literal["taylor", "activation"]) -> None:
    model, samples = planted()
    cut = choose_cut(model, VECTOR, ratio=0.125, importance=importance, samples=samples)
    assert cut.units == {"0": [3]}
    assert choose_cut(model, VECTOR, ratio=0.125).units != {"0": [3]}  # by magnitude it is the last to go


def test_taylor_is_what_the_loss_changes_by_to_first_order() -> None:
    model, samples = planted()
    (group,) = find_groups(model.requires_grad_(True), torch.zeros(2, 6))
    (scores,) = score(model, [group], "taylor", samples)
    expected = torch.zeros(8)
    for x, y in samples.batches:
        model.zero_grad()
        (cross_entropy(model(x), y) / 30.0).backward()
        expected += (model[0].weight * model[0].weight.grad).abs().sum(dim=1).detach()
        expected += (model[2].weight * model[2].weight.grad).abs().sum(dim=0).detach()
    torch.testing.assert_close(scores, expected / expected.mean())


def test_a_regression_has_importance_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.rand(20, 6)
    loss = lambda outputs, y: nn.functional.mse_loss(outputs.squeeze(-1), y, reduction="sum")  # noqa: E731
    samples = Samples(((x, x.sum(dim=1)),), loss, 20.0)
    signature = Signature(kind="vector", input_shape=(6,), outputs=1)
    assert len(choose_cut(model, signature, ratio=0.5, importance="taylor", samples=samples).units["0"]) == 4


@pytest.mark.parametrize("importance", ["taylor", "activation"])
@pytest.mark.parametrize("family", PICKED)
def test_every_family_has_every_importance(family: str, importance: Literal["taylor", "activation"]) -> None:
    _, signature = FAMILIES[family]
    model = made(family).requires_grad_(True)
    example = torch.zeros(2, *signature.input_shape, dtype=getattr(torch, signature.input_dtype))
    groups = find_groups(model, example)
    for group, scores in zip(groups, score(model, groups, importance, data_of(signature)), strict=True):
        assert scores.shape == (group.width // group.blocks,)
        assert scores.isfinite().all()
        assert scores.max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_is_no_activation() -> None:
    _, signature = FAMILIES["lstm of tokens"]
    model = made("lstm of tokens").requires_grad_(True)
    groups = find_groups(model, torch.zeros(2, 9, dtype=torch.int64))
    short = data_of(signature).batches[0][0][:1]  # a single real step
    found = []
    for noise in (0.0, 1e3):
        with torch.no_grad():
            model.embedding[1].weight[0] = noise  # of the code of padding
        samples = Samples(((short, torch.zeros(1, dtype=torch.int64)),), cross_entropy, 1.0)
        found.append(score(model, groups, "activation", samples)[0])
    torch.testing.assert_close(found[0], found[1])


def test_the_layer_that_everything_hangs_on_is_found_sensitive() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 3))
    with torch.no_grad():
        for index in (0, 4, 6):  # in all hidden layers but the second, half of the neurons do nothing
            model[index].weight.copy_(torch.rand(8, 8))
            model[index].weight[4:] = model[index].bias[4:] = 0.0
        model[2].weight.copy_(2.0 * torch.rand(8, 8))
        model[8].weight.copy_(torch.randn(3, 8))
    x = torch.rand(60, 8)
    y = model(x).detach()
    samples = Samples(((x, y),), lambda outputs, y: nn.functional.mse_loss(outputs, y, reduction="sum"), 60.0)
    before = [p.clone() for p in model.parameters()]
    found = sensitive_layers(
        model,
        Signature(kind="vector", input_shape=(8,), outputs=3),
        ratio=0.5,
        importance="magnitude",
        what=None,
        keep=(),
        samples=samples,
    )
    assert found == ("2",)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
