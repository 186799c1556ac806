"""int8_qat: learnt steps, their gradient, and that they are what stands in the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jobs.compress.learnt import LearntConv, LearntEmbedding, LearntLinear, Step, fold_norms, learn_steps, observe
from jobs.compress.masks import zero_masks
from jobs.compress.qat import fine_tuning, write_learnt
from jobs.errors import QuantizationFailed
from jobs.layout import ParallelLayout
from jobs.measure import load_proto
from jobs.requests import Recipe
from jobs.spec import JobSpec
from jobs.spec.compress import Qat
from tests.jobs.compress.conftest import MODELS, Small

Families = Callable[[str], Small]


def test_a_step_rounds_and_its_gradient_is_that_of_the_paper() -> None:
    step = Step(torch.tensor([0.5]), -7, 7, 0, 4)
    x = torch.tensor([0.6, -1.3, 9.0, -9.0], requires_grad=True)
    y = step(x)
    torch.testing.assert_close(y.detach(), torch.tensor([0.5, -1.5, 3.5, -3.5]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    # dx̂/ds: round(x/s) - x/s within, the bounds beyond; scaled by 1/√(n · highest), and ds/dθ = s over s₀².
    by_hand = (1 - 1.2) + (-3 + 2.6) + 7 - 7
    assert step.theta.grad.item() == pytest.approx(by_hand / np.sqrt(4 * 7) * 0.5 / 0.25, rel=1e-5)


def test_an_unsigned_step_keeps_zero_exact() -> None:
    step = Step(torch.tensor([0.1]), 0, 255, 20, 1)
    torch.testing.assert_close(
        step(torch.tensor([0.0, -5.0, 100.0, 0.26])), torch.tensor([0.0, -2.0, 23.5, 0.3]), rtol=1e-6, atol=1e-6
    )


def trained(small: Small) -> nn.Module:
    """The family with learnt steps, some steps of training on."""
    module = small.module()
    x = torch.from_numpy(small.x)
    assert learn_steps(module, observe(module, iter([x]))) > 0
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    module.train()
    for _ in range(3):
        optimizer.zero_grad()
        (module(x[:32]) - 0.5).square().mean().backward()
        optimizer.step()
        for layer in module.modules():
            if hasattr(layer, "take_pending"):
                layer.commit(layer.take_pending())
    return module.eval()


QUICK = ("lenet", "recommender")
BY_FAMILY = [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in MODELS]


@pytest.mark.parametrize("family", BY_FAMILY)
def test_the_learnt_steps_stand_in_the_file(family: str, families: Families, tmp_path: Path) -> None:
    small = families(family)
    module = trained(small)
    layers = [m for m in module.modules() if isinstance(m, LearntLinear | LearntConv)]
    assert any(layer.input_step.theta.abs().max() > 1e-3 for layer in layers)
    expected = [float(layer.input_step.scale.detach()) for layer in layers]
    with torch.no_grad():
        outputs = module(torch.from_numpy(small.x)).numpy()
    done = write_learnt(module, small.signature, tmp_path / "q.onnx", small.x, load_proto(small.file))
    graph = onnx.load(tmp_path / "q.onnx").graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = [float(tensors[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"]
    for scale in expected:
        assert min(abs(found - scale) / scale for found in scales) < 1e-6
    # What is between the products, positions and recurrent weights are rounded as well, but were not in training.
    assert done["parity"] < 0.03 * np.abs(outputs).max()
    assert done["scheme"] == "int8_qat"
    assert done["float_nodes"] == (2 if family == "transformer" else 0)
    assert small.size / (tmp_path / "q.onnx").stat().st_size > 1.3


def test_layers_that_share_an_input_share_its_step(families: Families) -> None:
    small = families("transformer")
    module = small.module()
    learn_steps(module, observe(module, iter([torch.from_numpy(small.x)])))
    by_name = dict(module.named_modules(remove_duplicate=False))
    query = next(name for name in by_name if name.endswith("query"))
    parts = [by_name[query.removesuffix("query") + part] for part in ("query", "key", "value")]
    assert len({id(part.input_step) for part in parts}) == 1
    assert len({id(part.weight_step) for part in parts}) == 3
    table = next(layer for layer in module.modules() if isinstance(layer, LearntEmbedding))
    tied = [m for m in module.modules() if isinstance(m, LearntLinear) and m.weight is table.weight]
    assert [layer.weight_step is table.weight_step for layer in tied] == [True]


def test_folding_a_normalization_keeps_the_outputs_and_the_integers(families: Families) -> None:
    small = families("lenet")
    module = trained(small)
    x = torch.from_numpy(small.x)
    with torch.no_grad():
        before = module(x)
        assert len(fold_norms(module)) == 3
        torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-4)
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_the_fine_tuning_is_data_parallel_in_fp32_at_a_tenth_of_the_rate() -> None:
    spec = JobSpec.parse(
        {
            "name": "x",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "mlp"},
            "train": {"epochs": 7, "precision": "bf16", "optimizer": {"name": "adamw", "lr": 0.01}},
        }
    )
    recipe = Recipe(spec.train, spec.data, spec.metric, layout=ParallelLayout(2, 2, 1), micro_batch=4)
    found = fine_tuning(recipe, Qat(epochs=2))
    assert (found.layout, found.micro_batch) == (ParallelLayout(4), None)
    assert (found.train.epochs, found.train.precision) == (2, "fp32")
    assert found.train.optimizer.lr == pytest.approx(0.001)
    assert fine_tuning(recipe, Qat(lr=0.5)).train.optimizer.lr == 0.5


def test_a_model_without_layers_to_round_gives_a_reason(tmp_path: Path, families: Families) -> None:
    module = nn.Flatten()
    assert learn_steps(module, observe(module, iter([torch.zeros(1, 4)]))) == 0
    small = families("mlp")
    with pytest.raises(QuantizationFailed, match="no learnt step fits"):
        write_learnt(nn.Sequential(nn.ReLU()), small.signature, tmp_path / "q.onnx", small.x, load_proto(small.file))


def test_what_was_pruned_is_known_by_its_zeros(families: Families) -> None:
    module = families("mlp").module()
    assert zero_masks(module) == {}
    with torch.no_grad():
        weight = next(p for p in module.parameters() if p.dim() == 2)
        weight[:, ::2] = 0.0
    ((name, mask),) = zero_masks(module).items()
    assert module.get_parameter(name) is weight
    assert torch.equal(mask, weight != 0)
