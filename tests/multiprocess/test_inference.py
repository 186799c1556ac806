"""A divided model predicts what the whole one does, and no worker of it holds more than its part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jobs.compress.prune import prune_structured
from jobs.exchange import Exchange
from jobs.layout import ParallelLayout, block_costs
from jobs.models.build import MODEL_FILE, RECIPE_FILE, build, save_model
from jobs.models.invariant import GROUPED
from jobs.models.registry import summarize
from jobs.models.slices import StoredModel, tensor_width
from jobs.records import Signature
from jobs.requests import DividedPredictRequest
from jobs.spec.load import model_section
from jobs.spec.model import OwnModel
from orchestrator.division import block_costs_for
from tests.multiprocess.ranks import Ranks

SAMPLES = 37
IMAGE = Signature(kind="image", input_shape=(3, 8, 8), outputs=4)
TABLE = Signature(kind="vector", input_shape=(9,), outputs=1)
LANGUAGE = Signature(kind="tokens", input_shape=(12,), outputs=40, num_codes=(40,), per_step=True)
TEXT = Signature(kind="tokens", input_shape=(12,), outputs=3, num_codes=(40,))
CODES = Signature(kind="codes", input_shape=(2,), outputs=1, num_codes=(30, 21))
SERIES = Signature(kind="sequence", input_shape=(10, 4), outputs=3)
TRANSFORMER = {"layers": 3, "width": 32, "heads": 4}
MODELS: dict[str, tuple[dict[str, Any], Signature]] = {
    "language model": ({"name": "transformer", "args": TRANSFORMER}, LANGUAGE),
    "classifier of texts": ({"name": "transformer", "args": TRANSFORMER}, TEXT),
    "table": ({"name": "mlp", "args": {"hidden": [64, 32, 32], "batch_norm": True, "dropout": 0.1}}, TABLE),
    "images": ({"name": "resnet", "args": {"depth": 8, "width": 8}}, IMAGE),
    "grouped images": ({"name": "resnet", "args": {"depth": 8, "width": 16, "norm": "group"}}, IMAGE),
    "recommender": ({"name": "recommender", "args": {"embedding": 16, "hidden": [32, 16]}}, CODES),
    "recurrence": ({"name": "lstm", "args": {"hidden": 16, "layers": 2}}, SERIES),
}
WIDE = {"layers": 4, "width": 256, "heads": 4}
WIDE_DOCUMENT = {"name": "transformer", "args": WIDE}
WIDE_SIGNATURE = Signature(kind="tokens", input_shape=(16,), outputs=800, num_codes=(800,), per_step=True)
LAYOUTS = {
    "tensor": ParallelLayout(tensor=2),
    "pipeline": ParallelLayout(pipeline=2),
    "all": ParallelLayout(data=2, tensor=2, pipeline=2),
}


def stored(name: str, folder: Path, ratio: float = 0.0) -> tuple[torch.nn.Module, Path]:
    """A model with random weights and statistics, on disk."""
    document, signature = MODELS[name]
    module = build(model_section(document), signature, seed=3)
    draw = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, GROUPED):
            layer.running_mean.normal_(generator=draw)
            layer.running_var.uniform_(0.5, 2.0, generator=draw)
    if ratio:
        module = prune_structured(module, signature, ratio=ratio, round_to=8)
    save_model(module, {"model": document, "signature": signature.to_json(), "pruned": bool(ratio)}, folder)
    return module.eval(), folder


def samples(signature: Signature, count: int = SAMPLES) -> np.ndarray:
    rng = np.random.default_rng(1)
    if signature.kind in ("tokens", "codes"):
        x = np.stack(
            [rng.integers(1, codes, count) for codes in signature.num_codes * signature.input_shape[0]], axis=1
        )
        x = x[:, : signature.input_shape[0]]
        lengths = rng.integers(1, signature.input_shape[0] + 1, count)
        return np.where(np.arange(x.shape[1]) < lengths[:, None], x, 0) if signature.kind == "tokens" else x
    x = rng.standard_normal((count, *signature.input_shape)).astype(np.float32)
    if signature.kind == "sequence":
        x[..., -1] = 1.0
    return x


def predicted(
    ranks: Ranks, name: str, folder: Path, layout: ParallelLayout, tmp_path: Path, x: np.ndarray
) -> np.ndarray:
    document, signature = MODELS[name]
    section: OwnModel = model_section(document)
    return shared_out(ranks, folder, layout, block_costs(summarize(section, signature)), tmp_path, x)


def shared_out(
    ranks: Ranks, folder: Path, layout: ParallelLayout, costs: tuple[int, ...], tmp_path: Path, x: np.ndarray
) -> np.ndarray:
    np.save(tmp_path / "samples.npy", x)
    shares = tmp_path / "shares"
    request = DividedPredictRequest(folder, layout, costs, tmp_path / "samples.npy", None, shares)
    ranks.run("jobs.train.inference:predict", request, layout.size)
    return Exchange(shares, layout.data).arrays("outputs")


CASES = [(name, kind) for name in MODELS for kind in LAYOUTS if name != "recurrence" or kind == "pipeline"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_divided_model_predicts_the_same(ranks: Ranks, name: str, kind: str, tmp_path: Path) -> None:
    module, folder = stored(name, tmp_path / "model")
    x = samples(MODELS[name][1])
    found = predicted(ranks, name, folder, LAYOUTS[kind], tmp_path, x)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-5)


def test_more_data_ranks_than_samples(ranks: Ranks, tmp_path: Path) -> None:
    module, folder = stored("table", tmp_path / "model")
    x = samples(TABLE, 1)
    found = predicted(ranks, "table", folder, ParallelLayout(data=3, tensor=2), tmp_path, x)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=0.0, atol=1e-5)


def test_a_model_of_ones_own_is_divided_into_stages(ranks: Ranks, tmp_path: Path) -> None:
    document, layout = {"name": "tests.multiprocess.works:network"}, ParallelLayout(pipeline=3)
    module = build(model_section(document), TABLE, seed=1)
    save_model(module, {"model": document, "signature": TABLE.to_json()}, tmp_path / "model")
    card = {"files": [{"path": name} for name in ("model.onnx", MODEL_FILE, RECIPE_FILE)]}
    costs = block_costs_for(tmp_path / "model", card, layout)  # the first stage has nothing to train, and computes
    x = samples(TABLE)
    found = shared_out(ranks, tmp_path / "model", layout, costs, tmp_path, x)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", ["images", "language model"])
def test_a_pruned_model_is_divided_at_its_own_widths(ranks: Ranks, name: str, tmp_path: Path) -> None:
    module, folder = stored(name, tmp_path / "model", ratio=0.5)
    assert tensor_width(StoredModel(folder).skeleton()) % 2 == 0
    x = samples(MODELS[name][1])
    found = predicted(ranks, name, folder, ParallelLayout(tensor=2, pipeline=2), tmp_path, x)
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "most"),
    [(ParallelLayout(tensor=2), 0.52), (ParallelLayout(pipeline=2), 0.75), (ParallelLayout(tensor=2, pipeline=2), 0.4)],
)
def test_no_worker_ever_holds_more_than_its_part(
    ranks: Ranks, layout: ParallelLayout, most: float, tmp_path: Path
) -> None:
    model, signature = model_section(WIDE_DOCUMENT), WIDE_SIGNATURE
    save_model(
        build(model, signature, seed=0), {"model": WIDE_DOCUMENT, "signature": signature.to_json()}, tmp_path / "model"
    )
    whole = sum(value.nbytes for value in load_file(tmp_path / "model" / MODEL_FILE).values())
    request = (tmp_path / "model", layout, block_costs(summarize(model, signature)))
    for found in ranks.run("tests.multiprocess.works:memory_of_division", request, layout.size):
        assert 0.1 * whole < found["resident"] < most * whole
        assert found["peak"] < (most + 0.1) * whole
