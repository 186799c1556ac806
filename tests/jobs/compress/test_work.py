"""The stages `prune` and `low_rank` on real data, in one process: every method with recovery, broken off, from disk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import data
from jobs.compress.recover import training_samples
from jobs.compress.work import low_rank, prune
from jobs.context import LocalContext
from jobs.data import Dataset
from jobs.errors import FactorizationFailed, SpecError
from jobs.models.build import load_model
from jobs.models.structure import LowRank
from jobs.requests import LowRankRequest, PruneRequest, Recipe, TrainRequest
from jobs.spec import JobSpec
from jobs.spec.compress import LowRank as LowRankSection
from jobs.spec.compress import Prune
from jobs.storage import read_json, write_json
from jobs.train.work import train

SPEC = JobSpec.parse(
    {
        "name": "small",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"conv_widths": [8], "linear_widths": [32, 16], "kernel": 3}},
        "train": {"epochs": 6, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 1e-2}},
    }
)
RECIPE = Recipe(SPEC.train, SPEC.data, SPEC.metric)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / data.fingerprint(SPEC.data, SPEC.train.loss)
    data.prepare(SPEC.data, SPEC.train.loss, folder)
    return folder


@pytest.fixture(scope="module")
def dense(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    train(LocalContext(), TrainRequest(SPEC.resolved()["model"], RECIPE, dataset, folder))
    return folder / "model"


def pruned(section: dict[str, Any], dense: Path, dataset: Path, folder: Path) -> tuple[dict[str, Any], torch.nn.Module]:
    section = {"recover": {"epochs": 1, "distill": {}}} | section
    request = PruneRequest(Prune.model_validate(section), dense, RECIPE, dataset, folder)
    return prune(LocalContext(), request), load_model(folder / "model")


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
def test_structured_pruning_recovers(importance: str, dense: Path, dataset: Path, tmp_path: Path) -> None:
    section = {"ratio": 0.5, "importance": importance, "protect": "auto", "ignore": ["conv1"]}
    result, module = pruned(section, dense, dataset, tmp_path)
    assert result["params"] == sum(p.numel() for p in module.parameters()) < 0.8 * result["dense_params"]
    assert module.get_parameter("conv1.0.weight").shape[0] == 8
    assert result["metric"] > 0.7
    assert result["metric"] == read_json(tmp_path / "history.json")["epochs"][-1]["metric"]


@pytest.mark.parametrize(
    ("section", "share"),
    [
        ({"method": "magnitude", "ratio": 0.8, "steps": 2}, 0.8),
        ({"method": "magnitude", "ratio": 0.8, "global_pruning": True}, 0.8),
        ({"method": "nm"}, 0.5),
    ],
)
def test_sparse_weights_stay_exactly_zero(
    section: dict[str, Any], share: float, dense: Path, dataset: Path, tmp_path: Path
) -> None:
    result, module = pruned(section, dense, dataset, tmp_path)
    weights = [p for name, p in module.named_parameters() if p.dim() >= 2 and not name.startswith("conv1")]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    assert zeros == pytest.approx(share, abs=0.02)
    assert result["params"] == result["dense_params"]
    assert result["nonzero_params"] == sum(int(p.count_nonzero()) for p in module.parameters())
    assert result["metric"] > 0.7


def test_what_was_broken_off_goes_on_after_its_last_step(dense: Path, dataset: Path, tmp_path: Path) -> None:
    section = {"method": "magnitude", "ratio": 0.6, "steps": 2}
    _, whole = pruned(section, dense, dataset, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "pruned-1", tmp_path / "again" / "checkpoints" / "pruned-1")
    _, again = pruned(section, dense, dataset, tmp_path / "again")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_low_rank_recovers_from_what_was_pruned(dense: Path, dataset: Path, tmp_path: Path) -> None:
    pruned({"ratio": 0.25}, dense, dataset, tmp_path / "pruned")
    section = LowRankSection.model_validate({"rank_ratio": 0.3, "min_size": 8, "recover": {"epochs": 1}})
    request = LowRankRequest(section, tmp_path / "pruned" / "model", RECIPE, dataset, tmp_path / "low")
    result = low_rank(LocalContext(), request)
    module = load_model(tmp_path / "low" / "model")
    assert {name for name, layer in module.named_modules() if isinstance(layer, LowRank)} == set(result["ranks"])
    assert result["params"] == sum(p.numel() for p in module.parameters()) < result["dense_params"]
    assert result["metric"] > 0.6
    assert read_json(tmp_path / "low" / "model" / "model.json")["pruned"]
    section = LowRankSection(energy=0.999, min_size=16)
    with pytest.raises(FactorizationFailed):
        low_rank(LocalContext(), LowRankRequest(section, dense, RECIPE, dataset, tmp_path / "none"))


@pytest.mark.parametrize("key", ["protect", "ignore"])
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(
    key: str, dense: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=rf"compress\.prune\.{key}: .*no such layer.*did you mean 'linear1\.1'"):
        pruned({key: ["linear1.l"]}, dense, dataset, tmp_path)


def test_importance_looks_at_training_samples_alone(dataset: Path) -> None:
    opened = Dataset.open(dataset)
    found = training_samples(opened, RECIPE)
    ids = opened.calibration_ids
    assert sum(len(x) for x, _ in found.batches) == len(ids) == found.weight
    expected = opened.encoded("train", ids, opened.encoding("standardize"))
    assert (torch.cat([x for x, _ in found.batches]).numpy() == expected).all()
    assert (torch.cat([y for _, y in found.batches]).numpy() == opened.targets("train", ids)).all()


class Stopping(LocalContext):
    """Wants the work to end at once."""

    def stop_requested(self) -> bool:
        return True


def test_a_recovery_that_was_broken_off_goes_on_with_the_cut_that_it_had(
    dense: Path, dataset: Path, tmp_path: Path
) -> None:
    section = {"ratio": 0.5, "importance": "taylor", "protect": "auto", "recover": {"epochs": 1}}
    _, whole = pruned(section, dense, dataset, tmp_path / "whole")
    request = PruneRequest(Prune.model_validate(section), dense, RECIPE, dataset, tmp_path / "again")
    assert prune(Stopping(), request) == {"stopped": True}
    cut = tmp_path / "again" / "checkpoints" / "cut-1.json"
    assert read_json(cut) == read_json(tmp_path / "whole" / "checkpoints" / "cut-1.json")
    _, again = pruned(section, dense, dataset, tmp_path / "again")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    # Another machine's importance might differ: what was decided holds.
    decided = read_json(cut)
    decided["units"]["linear1.1"] = decided["units"]["linear1.1"][:1]
    write_json(tmp_path / "third" / "checkpoints" / "cut-1.json", decided)
    _, third = pruned(section, dense, dataset, tmp_path / "third")
    assert third.get_parameter("linear1.1.weight").shape[0] == 31
