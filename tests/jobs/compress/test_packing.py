"""From a trained model to a pack: zeros, codebooks, and the stages that make them, on digits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs import data
from jobs.compress.learnt import fold_norms
from jobs.compress.norms import restore_norms, settle_norms
from jobs.compress.pack import restore, unpack
from jobs.compress.packing import pack, share
from jobs.compress.sharing import cluster, fixed_point, round_shared, share_weights
from jobs.compress.sparse import (
    GradualPruning,
    bake_weights,
    hide_smallest,
    layer_scores,
    mask_weights,
    sparsity_at,
    weight_of,
    weighted_layers,
)
from jobs.context import LocalContext
from jobs.data import Dataset
from jobs.errors import SpecError
from jobs.export.onnx import export_onnx
from jobs.layout import ParallelLayout
from jobs.models.build import build, load_model, save_model
from jobs.requests import PackRequest, Recipe, ShareRequest
from jobs.spec import JobSpec


def spec_of(**pack_keys: Any) -> JobSpec:
    keys = {"sparsity": 0.8, "codebook_bits": 3, "recover": {"epochs": 2}, "finetune": {"epochs": 1}} | pack_keys
    return JobSpec.parse(
        {
            "name": "small",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {
                "name": "lenet",
                "args": {"conv_widths": [4], "linear_widths": [16], "batch_norm": True, "activation": "tanh"},
            },
            "train": {"steps": 24, "batch_size": 64},
            "compress": {"pack": keys},
        }
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    spec = spec_of()
    folder = tmp_path_factory.mktemp("datasets") / data.fingerprint(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, folder)
    return Dataset.open(folder)


@pytest.fixture
def dense(digits: Dataset, tmp_path: Path) -> Path:
    spec, folder = spec_of(), tmp_path / "dense"
    module = build(spec.model, digits.info.signature, seed=0)
    recipe = {"model": spec.model.model_dump(mode="json"), "signature": digits.info.signature.to_json()}
    save_model(module, recipe, folder)
    return folder


def run_share(
    digits: Dataset, dense: Path, folder: Path, zero_stage: int = 0, context: LocalContext | None = None, **keys: Any
) -> dict[str, Any]:
    spec = spec_of(**keys)
    layout = ParallelLayout(zero_stage=zero_stage)
    assert spec.compress.pack is not None
    request = ShareRequest(
        pack=spec.compress.pack,
        parent=dense,
        recipe=Recipe(spec.train, spec.data, spec.metric, layout=layout),
        dataset=digits.folder,
        folder=folder,
    )
    return share(context or LocalContext(), request)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [weight_of(layer).detach() for _, layer in weighted_layers(module)]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 5))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
def test_the_share_asked_for_is_hidden(sparsity: float) -> None:
    model = perceptron()
    mask_weights(model)
    hide_smallest(model, sparsity)
    bake_weights(model)
    zeros = sum(int((w == 0).sum()) for w in weights(model))
    assert zeros == pytest.approx(sparsity * 750, abs=2)
    assert sorted(model.state_dict()) == sorted(perceptron().state_dict())


def test_no_layer_is_emptied_and_what_is_hidden_stays_so() -> None:
    model = perceptron()
    with torch.no_grad():
        weight_of(model[3]).mul_(1e-6)
    mask_weights(model)
    hide_smallest(model, 0.9)
    before = [w == 0 for w in weights(model)]
    assert all(bool((w != 0).any()) for w in weights(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    hide_smallest(model, 0.95)
    assert all(bool((w[was] == 0).all()) for w, was in zip(weights(model), before, strict=True))


def test_scores_are_those_of_the_paper() -> None:
    assert layer_scores(torch.tensor([2.0, -1.0, 3.0])).tolist() == pytest.approx([4 / 13, 1 / 14, 1.0])
    assert layer_scores(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_sparsity_rises_to_its_end_and_stays() -> None:
    shares = [sparsity_at(step, 100, 0.9) for step in range(100)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[40:] == [0.9] * 60
    assert shares[20] == pytest.approx(0.9 * (1 - 0.5**3))


@pytest.mark.parametrize("total_steps", [1, 2, 31, 32, 33, 500])
def test_however_short_the_training_the_target_is_reached(total_steps: int) -> None:
    model = perceptron()
    mask_weights(model)
    for step in range(total_steps):
        GradualPruning(0.9)(model, step, total_steps)
    assert sum(int((w == 0).sum()) for w in weights(model)) == 675


def test_clusters_are_means_of_what_is_nearest() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(c, 0.01, 50) for c in (-1.0, 0.2, 0.9)])
    centroids, index = cluster(values, 3)
    assert centroids == pytest.approx([-1.0, 0.2, 0.9], abs=0.01)
    assert index.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    assert [len(cluster(np.array(v), 4)[0]) for v in ([], [0.5], [0.5, 0.5], [0.1, 0.5])] == [0, 1, 1, 2]


def test_the_gradient_of_a_centroid_is_the_sum_of_its_weights() -> None:
    model = perceptron()
    mask_weights(model)
    hide_smallest(model, 0.5)
    bake_weights(model)
    counts = share_weights(model, 2, 2)
    assert counts == {"0": 4, "3": 4}
    x = torch.randn(8, 20)
    model(x).square().sum().backward()
    layer = model[0].parametrizations.weight
    shared, found = layer[0], layer.original.grad
    model.zero_grad()
    bake_weights(model)
    model(x).square().sum().backward()
    each = weight_of(model[0]).grad.flatten()
    sums = torch.zeros(4).index_add(0, shared.index, each[shared.positions])
    assert torch.allclose(found, sums, rtol=1e-4, atol=1e-5)


def test_rounded_values_are_few_and_near() -> None:
    values = torch.tensor([1.0, -0.3, 0.001, -0.0001])
    rounded = fixed_point(values)
    assert (rounded - values).abs().max() <= 2.0**-7
    assert (rounded * 64 == (rounded * 64).round()).all()
    assert not torch.signbit(rounded[3])
    model = perceptron()
    share_weights(model, 3, 3)
    round_shared(model)
    assert all((p == p.half()).all() for p in model.parameters())


def test_statistics_of_batch_normalization_move_into_scale_and_shift() -> None:
    model = perceptron()
    for _ in range(20):
        model(3.0 + 2.0 * torch.randn(64, 20))
    model.eval()
    x = torch.randn(8, 20)
    before = model(x)
    settle_norms(model)
    assert torch.allclose(model(x), before, atol=1e-4)
    norm = model[1]
    assert (norm.running_mean == 0).all()
    assert (norm.running_var == 1).all()


def test_a_folded_normalization_comes_back_as_a_shift() -> None:
    model = perceptron()
    for _ in range(20):
        model(3.0 + 2.0 * torch.randn(64, 20))
    model.eval()
    x, names, biases = torch.randn(8, 20), list(model.state_dict()), model[0].bias is not None
    before = model(x)
    folded = fold_norms(model)
    assert [each.name for each in folded] == ["1"]
    restore_norms(model, folded)
    assert torch.allclose(model(x), before, atol=1e-4)
    assert list(model.state_dict()) == names
    assert (model[0].bias is not None) == biases
    assert model[1].weight.unique().numel() == 1


def test_weights_are_compared_as_normalization_scales_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0, 4.0], [2.0, 1.0]]))
        model[1].running_var.copy_(torch.tensor([100.0, 0.01]))
    mask_weights(model)
    hide_smallest(model, 0.5)
    assert model[0].parametrizations.weight[0].mask.tolist() == [[False, False], [True, True]]


def test_a_model_is_shared_packed_and_restored(digits: Dataset, dense: Path, tmp_path: Path) -> None:
    result = run_share(digits, dense, tmp_path / "share", conv_bits=2)
    model = load_model(tmp_path / "share" / "model")
    assert result["nonzero_weights"] == pytest.approx(0.2 * sum(w.numel() for w in weights(model)), abs=3)
    found = {name: len(weight_of(layer)[weight_of(layer) != 0].unique()) for name, layer in weighted_layers(model)}
    assert all(found[name] <= (4 if name.startswith("conv") else 8) for name in found)
    assert all(found[name] <= result["centroids"][name] for name in found)

    export_onnx(model, digits.info.signature, tmp_path / "model.onnx", {"producer": "thresher"})
    request = PackRequest(tmp_path / "share" / "model", tmp_path / "model.onnx", tmp_path / "pack")
    packed = pack(LocalContext(), request)
    assert packed is not None
    archive = (tmp_path / "pack" / "model.thpack").read_bytes()
    assert packed["bytes"] == len(archive)
    assert packed["ratio"] == packed["fp32_bytes"] / len(archive) > 5
    assert restore(archive)["model.onnx"] == (tmp_path / "model.onnx").read_bytes()
    unpack(tmp_path / "pack" / "model.thpack", tmp_path / "out")
    restored, x = load_model(tmp_path / "out").eval(), torch.zeros(2, *digits.info.signature.input_shape)
    assert torch.equal(restored(x), model.eval()(x))


def test_zeros_stay_zero_under_zero_stage_2(digits: Dataset, dense: Path, tmp_path: Path) -> None:
    for stage in (0, 2, 3):  # 3 is lowered to 2
        run_share(digits, dense, tmp_path / str(stage), zero_stage=stage)
    first, *others = (load_model(tmp_path / stage / "model").state_dict() for stage in ("0", "2", "3"))
    for other in others:
        assert all(torch.equal(first[name] == 0, other[name] == 0) for name in first if name.endswith("weight"))


def test_a_stage_that_was_broken_off_goes_on(digits: Dataset, dense: Path, tmp_path: Path) -> None:
    class Stopping(LocalContext):
        def stop_requested(self) -> bool:
            return any(report["label"] == "pack: finetune" for report in self.reports)

    whole = run_share(digits, dense, tmp_path / "whole")
    assert run_share(digits, dense, tmp_path / "parts", context=Stopping()) == {"stopped": True}
    context = LocalContext()
    rest = run_share(digits, dense, tmp_path / "parts", context=context)
    assert {report["label"] for report in context.reports} == {"pack: finetune"}
    assert rest["metric"] == whole["metric"]
    assert (tmp_path / "parts/model/model.safetensors").read_bytes() == (
        tmp_path / "whole/model/model.safetensors"
    ).read_bytes()


def test_without_training_it_is_pruned_at_once(digits: Dataset, dense: Path, tmp_path: Path) -> None:
    result = run_share(digits, dense, tmp_path / "share", recover={"epochs": 0}, finetune={"epochs": 0})
    assert result["metric"] is None
    assert all(len(w[w != 0].unique()) <= 8 for w in weights(load_model(tmp_path / "share" / "model")))


def test_what_has_no_weights_to_share_is_refused(
    digits: Dataset, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    for module, words in ((nn.Sequential(nn.Flatten()), "no convolution"), (tied, "come apart")):
        monkeypatch.setattr("jobs.compress.packing.load_model", lambda folder, module=module: module)
        with pytest.raises(SpecError, match=words):
            run_share(digits, dense, tmp_path / "share")
