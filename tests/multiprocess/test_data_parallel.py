"""Two data-parallel ranks against one: the same losses and the same weights, under every ZeRO stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import data
from jobs.context import LocalContext
from jobs.models.build import load_model
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec
from jobs.storage import read_json
from jobs.train.work import train
from tests.jobs.train.conftest import document

SGD = {"train.optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
ADAMW = {"train.optimizer": {"name": "adamw", "lr": 1e-2}, "train.gradient_clip": 0.7}
FLIPPED = {**SGD, "train.steps": 60, "data.augment": [{"random_crop": {"padding": 1}}, {"rotate": {"degrees": 10}}]}
WEIGHTED = {**SGD, "train.class_weights": [5.0, *[1.0] * 9], "train.label_smoothing": 0.1}
NORM = {"batch_norm": True, "norm_group": 16, "dropout": 0.3, "activation": "gelu"}
LAYERS = {**SGD, "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16], **NORM}}}
# With seed 0 a pre-activation lies within rounding of zero, and its ReLU opens on one side alone; few steps, so that
# another such one is unlikely.
RESNET = {
    **SGD,
    "train.seed": 1,
    "train.steps": 8,
    "model": {"name": "resnet", "args": {"depth": 8, "width": 8, "norm_group": 16}},
}
MLP = {**ADAMW, "model": {"name": "mlp", "args": {"hidden": [32]}}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = JobSpec.parse(document())
    folder = tmp_path_factory.mktemp("datasets") / data.fingerprint(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, folder)
    return folder


def request(values: dict[str, Any], dataset: Path, folder: Path, **layout: Any) -> TrainRequest:
    spec = JobSpec.parse(document()).replace({"train.steps": 20, **values})
    recipe = Recipe(spec.train, spec.data, spec.metric, **layout)
    return TrainRequest(model=spec.resolved()["model"], recipe=recipe, dataset=dataset, folder=folder)


@pytest.mark.parametrize(
    ("values", "layout"),
    [
        *[pytest.param(SGD, {"zero_stage": stage}, id=f"sgd-zero{stage}") for stage in range(4)],
        *[pytest.param(ADAMW, {"zero_stage": stage}, id=f"adamw-zero{stage}") for stage in range(4)],
        pytest.param(WEIGHTED, {"micro_batch": 4}, id="class-weights-accumulation"),
        pytest.param(FLIPPED, {}, id="augmentation"),
        *[pytest.param(LAYERS, {"zero_stage": stage}, id=f"norm-dropout-zero{stage}") for stage in (0, 2, 3)],
        *[pytest.param(RESNET, {"zero_stage": stage}, id=f"resnet-zero{stage}") for stage in (0, 1, 3)],
        pytest.param(MLP, {"zero_stage": 2, "micro_batch": 8}, id="mlp-accumulation"),
    ],
)
def test_two_workers_give_the_losses_of_one(two_ranks, dataset, tmp_path, values, layout):
    train(LocalContext(), request(values, dataset, tmp_path / "one"))
    two_ranks.run("jobs.train.work:train", request(values, dataset, tmp_path / "two", **layout))
    one, two = (read_json(tmp_path / name / "history.json") for name in ("one", "two"))
    assert one["losses"][-1] < 0.8 * one["losses"][0]
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    assert two["epochs"][-1]["metric"] == pytest.approx(one["epochs"][-1]["metric"], abs=0.01)
    for (name, a), (_, b) in zip(
        load_model(tmp_path / "one" / "model").named_parameters(),
        load_model(tmp_path / "two" / "model").named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_of_two_workers_is_taken_up_by_one(two_ranks, dataset, tmp_path, stage):
    values = {**ADAMW, "train.checkpoint.every_steps": 10, "train.schedule": "cosine"}
    train(LocalContext(), request(values, dataset, tmp_path / "whole"))
    two_ranks.run("tests.multiprocess.works:train_half", request(values, dataset, tmp_path / "moved", zero_stage=stage))
    context = LocalContext()
    train(context, request(values, dataset, tmp_path / "moved"))
    assert context.reports[0] == {"event": "resumed", "label": "train", "step": 10, "epochs": []}
    whole, moved = (read_json(tmp_path / name / "history.json") for name in ("whole", "moved"))
    np.testing.assert_allclose(moved["losses"], whole["losses"], rtol=1e-4)


def test_prune_and_recover_on_two_workers_gives_one_small_model(two_ranks, dataset, tmp_path):
    from jobs.requests import PruneRequest
    from jobs.spec.compress import Distill, Prune, Recover

    trained = request(SGD, dataset, tmp_path / "dense")
    train(LocalContext(), trained)
    section = Prune(ratio=0.5, steps=2, recover=Recover(epochs=1, distill=Distill()))
    pruning = PruneRequest(section, tmp_path / "dense" / "model", trained.recipe, dataset, tmp_path / "pruned")
    first, second = two_ranks.run("jobs.compress.work:prune", pruning)
    assert first["params"] == second["params"] < 0.7 * first["dense_params"]
    small = load_model(tmp_path / "pruned" / "model")
    assert sum(p.numel() for p in small.parameters()) == first["params"]
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
