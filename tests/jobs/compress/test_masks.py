"""Single weights set to zero: which ones, how many, and that no training brings them back."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.compress.masks import apply_masks, check_zeros, hold_zeros, magnitude_masks, nm_masks, sparsity_at
from jobs.errors import JobFailed, SpecError
from jobs.models.modules import Positions
from tests.jobs.compress.compressed import PICKED, check_onnx, check_same_after_reload, data_of
from tests.jobs.models.small_models import FAMILIES, made


def test_the_schedule_is_zhus_and_guptas() -> None:
    assert [sparsity_at(step, 1, 0.8) for step in (1,)] == [0.8]
    found = [sparsity_at(step, 5, 0.95) for step in range(6)]
    assert found == pytest.approx([0.95 * (1 - (1 - step / 5) ** 3) for step in range(6)])
    rises = [b - a for a, b in pairwise(found)]
    assert rises == sorted(rises, reverse=True)


@pytest.mark.parametrize("family", PICKED)
@pytest.mark.parametrize("global_pruning", [False, True])
def test_the_smallest_weights_of_every_family_go(family: str, global_pruning: bool) -> None:
    model = made(family)
    masks = magnitude_masks(model, 0.7, global_pruning=global_pruning)
    kept = {name: model.get_parameter(name).detach().abs()[mask] for name, mask in masks.items()}
    gone = {name: model.get_parameter(name).detach().abs()[~mask] for name, mask in masks.items()}
    total = sum(mask.numel() for mask in masks.values())
    assert sum(len(values) for values in gone.values()) / total == pytest.approx(0.7, abs=0.05)
    layers = dict(model.named_modules())
    assert not any(isinstance(layers[name.rpartition(".")[0]], nn.LayerNorm | Positions) for name in masks)
    for name, values in kept.items():
        assert len(values)  # no layer vanishes
        if not global_pruning and len(gone[name]):
            assert values.min() >= gone[name].max()
            assert len(gone[name]) == round(0.7 * masks[name].numel())


@pytest.mark.parametrize("global_pruning", [False, True])
def test_no_layer_is_pruned_away(global_pruning: bool) -> None:
    masks = magnitude_masks(made("mlp"), 0.999_999, global_pruning=global_pruning)
    assert [int(mask.sum()) for mask in masks.values()] == [1] * len(masks)


def test_more_steps_only_add_zeros() -> None:
    model = made("mlp")
    before = magnitude_masks(model, 0.5)
    apply_masks(model, before)
    after = magnitude_masks(model, 0.8)
    assert all((mask | ~after[name]).all() for name, mask in before.items())


@pytest.mark.parametrize(
    ("family", "n", "m"),
    [("transformer of language", 2, 4), ("resnet", 1, 4), ("lstm of tokens", 2, 3), ("recommender", 2, 4)],
)
def test_n_of_every_m_inputs_stay(family: str, n: int, m: int) -> None:
    model = made(family)
    masks = nm_masks(model, n, m)
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().abs()
        groups = mask.movedim(1, -1).unflatten(-1, (-1, m))
        assert (groups.sum(dim=-1) == n).all(), name
        values = weight.movedim(1, -1).unflatten(-1, (-1, m))
        assert (values.where(groups, torch.inf).amin(-1) >= values.where(~groups, 0.0).amax(-1)).all()
    assert masks


def test_what_can_have_no_mask_is_refused() -> None:
    with pytest.raises(SpecError, match=r"compress\.prune\.m: no layer's number of inputs is a multiple"):
        nm_masks(made("mlp"), 2, 64)
    with pytest.raises(SpecError, match=r"compress\.prune\.ignore: .*no layer remains"):
        magnitude_masks(made("mlp"), 0.5, ignore=["hidden1", "hidden2", "hidden3", "classifier"])


def test_layers_that_are_ignored_stay_whole_with_what_they_share() -> None:
    masks = magnitude_masks(made("transformer of language"), 0.5, ignore=["classifier", "layer1.0"])
    assert "embedding.1.weight" not in masks  # it is the classifier
    assert not any(name.startswith("layer1.0") for name in masks)
    assert any(name.startswith("layer1.1") for name in masks)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("family", ["lstm of tokens", "transformer of language"])
def test_no_update_brings_a_weight_back(family: str, optimizer: Any) -> None:
    _, signature = FAMILIES[family]
    model = made(family).train()
    masks = magnitude_masks(model, 0.6)
    apply_masks(model, masks)
    hold_zeros(model, masks)
    steps = optimizer(model.parameters())
    samples = data_of(signature)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for x, y in samples.batches:
        steps.zero_grad()
        samples.loss(model(x), y).backward()
        steps.step()
    check_zeros(model, masks)
    assert all(not torch.equal(before[name], model.get_parameter(name)) for name in masks)  # the others did move
    with torch.no_grad():
        name = next(name for name, mask in masks.items() if not mask.all())
        model.get_parameter(name).fill_(1.0)
    with pytest.raises(JobFailed, match="are not zero"):
        check_zeros(model, masks)


def test_zeros_are_stored_exported_and_counted(tmp_path: Path) -> None:
    model = made("mlp")
    masks = magnitude_masks(model, 0.75)
    apply_masks(model, masks)
    check_same_after_reload("mlp", model, tmp_path / "model", pruned=True)
    figures = check_onnx("mlp", model, tmp_path / "model.onnx")
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert figures["params"] - figures["nonzero"] == zeros
    assert figures["params"] == sum(p.numel() for p in model.parameters())
