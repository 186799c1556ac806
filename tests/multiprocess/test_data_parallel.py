"""What only several data ranks show: weights and augmentation in the loss, accumulation, pruning on all workers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.layout import ParallelLayout
from jobs.measure import count_params
from jobs.models.build import load_model
from jobs.requests import ExportRequest, LowRankRequest, PruneRequest, QatRequest, Recipe, TrainRequest
from jobs.spec.compress import Distill, LowRank, Prune, Qat, Recover
from jobs.storage import read_json
from tests.multiprocess.cells import ONE, TOLERANCE, Cell, dataset_of, request_of, spec_of
from tests.multiprocess.ranks import Ranks

TWO = ParallelLayout(data=2, zero_stage=1)
WEIGHTED = {"train.class_weights": [5.0, *[1.0] * 9], "train.label_smoothing": 0.1, "train.gradient_clip": 0.7}
MOVED = {"data.augment": [{"random_crop": {"padding": 1}}, {"rotate": {"degrees": 10}}]}


@pytest.mark.parametrize("values", [WEIGHTED, MOVED], ids=["class-weights-clip", "augmentation"])
def test_two_workers_give_the_losses_of_one(
    ranks: Ranks, data_folder: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    spec = spec_of("lenet", "sgd", data_folder, **values)
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    two = Cell(ranks, spec, TWO, data_folder, tmp_path / "two")
    assert max(two.away_from(one)) < TOLERANCE


def test_micro_batches_give_the_losses_of_the_whole_batch(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("mlp", "adamw", data_folder, **{"train.gradient_clip": 0.5})
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    request = request_of(spec, TWO, dataset_of(spec, data_folder), tmp_path / "parts")
    recipe = Recipe(spec.train, spec.data, spec.metric, layout=TWO, micro_batch=8)
    ranks.run("jobs.train.work:train", TrainRequest(request.model, recipe, request.dataset, request.folder), 2)
    for name, value in load_model(tmp_path / "parts" / "model").named_parameters():
        torch.testing.assert_close(value, one.parameters[name], rtol=0.0, atol=TOLERANCE, msg=name)


def test_prune_and_recover_on_two_workers_gives_one_small_model(
    ranks: Ranks, data_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of("lenet", "sgd", data_folder)
    dataset = dataset_of(spec, data_folder)
    Cell(ranks, spec, ONE, data_folder, tmp_path / "dense")
    section = Prune(ratio=0.5, steps=2, recover=Recover(epochs=1, distill=Distill()))
    # Trained by tensor peers, it recovers data-parallel.
    recipe = request_of(spec, ParallelLayout(tensor=2), dataset, tmp_path).recipe
    pruning = PruneRequest(section, tmp_path / "dense" / "model", recipe, dataset, tmp_path / "pruned")
    first, second = ranks.run("jobs.compress.work:prune", pruning, 2)
    assert first["params"] == second["params"] < 0.7 * first["dense_params"]
    small = load_model(tmp_path / "pruned" / "model").eval()
    assert sum(p.numel() for p in small.parameters()) == first["params"]
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_masked_weights_stay_exactly_zero_on_two_workers_under_zero(
    ranks: Ranks, data_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of("lstm", "adamw", data_folder)
    dataset = dataset_of(spec, data_folder)
    Cell(ranks, spec, ONE, data_folder, tmp_path / "dense")
    section = Prune(method="magnitude", ratio=0.75, steps=2, recover=Recover(epochs=1, distill=Distill()))
    recipe = request_of(spec, ParallelLayout(data=2, zero_stage=2), dataset, tmp_path).recipe
    pruning = PruneRequest(section, tmp_path / "dense" / "model", recipe, dataset, tmp_path / "pruned")
    first, second = ranks.run("jobs.compress.work:prune", pruning, 2)
    assert first["nonzero_params"] == second["nonzero_params"]
    dense, sparse = (dict(load_model(tmp_path / name / "model").named_parameters()) for name in ("dense", "pruned"))
    for name, weight in sparse.items():
        assert not torch.equal(weight, dense[name]), name  # it did train
        if weight.dim() == 2:
            assert int((weight == 0).sum()) == round(0.75 * weight.numel()), name


def test_low_rank_is_the_same_on_two_workers(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("transformer", "adamw", data_folder)
    dataset = dataset_of(spec, data_folder)
    Cell(ranks, spec, ONE, data_folder, tmp_path / "dense")
    section = LowRank(rank_ratio=0.25, min_size=32, recover=Recover(epochs=1))
    recipe = request_of(spec, ParallelLayout(data=2, zero_stage=3), dataset, tmp_path).recipe
    request = LowRankRequest(section, tmp_path / "dense" / "model", recipe, dataset, tmp_path / "low")
    first, second = ranks.run("jobs.compress.work:low_rank", request, 2)
    assert first["ranks"] == second["ranks"]
    assert len(first["ranks"]) == 18  # queries, keys, values, outputs and two feed-forward layers, three times
    assert first["params"] == second["params"] < first["dense_params"]


def test_quantization_aware_training_on_two_workers_learns_what_one_does(
    ranks: Ranks, data_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of("lenet", "sgd", data_folder)
    dataset = dataset_of(spec, data_folder)
    Cell(ranks, spec, ONE, data_folder, tmp_path / "dense")
    model, source = tmp_path / "dense" / "model", tmp_path / "model.onnx"
    ranks.run("jobs.export.work:export", ExportRequest(model, dataset, "standardize", tmp_path, {"run": "r1"}), 1)
    found = {}
    for layout in (ONE, TWO):
        folder = tmp_path / str(layout.size)
        folder.mkdir()
        recipe = request_of(spec, layout, dataset, tmp_path).recipe
        request = QatRequest(Qat(epochs=1, lr=0.002, distill=Distill()), model, source, recipe, dataset, folder)
        done, *others = ranks.run("jobs.compress.qat:quantize_aware", request, layout.size)
        assert others == [None] * (layout.size - 1)
        assert done["float_nodes"] == 0
        assert done["parity"] < 0.5  # of logits around 5: what tanh takes is rounded in the file alone
        found[layout.size] = read_json(folder / "history.json")["losses"]
        assert (folder / "model.onnx").stat().st_size < 0.5 * source.stat().st_size
    assert len(found[1]) > 5
    away = [abs(a - b) for a, b in zip(found[1], found[2], strict=True)]
    # Rounding is no continuous function: a last bit may move a value over a tie, and then the two part a little.
    assert away[0] < 1e-6
    assert max(away) < 0.02


def test_quantization_aware_training_keeps_what_was_pruned(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("mlp", "adamw", data_folder)
    dataset = dataset_of(spec, data_folder)
    Cell(ranks, spec, ONE, data_folder, tmp_path / "dense")
    section = Prune(method="magnitude", ratio=0.75, recover=Recover(epochs=1))
    recipe = request_of(spec, TWO, dataset, tmp_path).recipe
    (tmp_path / "pruned").mkdir()
    pruning = PruneRequest(section, tmp_path / "dense" / "model", recipe, dataset, tmp_path / "pruned")
    ranks.run("jobs.compress.work:prune", pruning, 2)
    model, folder = tmp_path / "pruned" / "model", tmp_path / "qat"
    folder.mkdir()
    ranks.run("jobs.export.work:export", ExportRequest(model, dataset, "standardize", tmp_path, {"run": "r1"}), 1)
    request = QatRequest(Qat(epochs=1), model, tmp_path / "model.onnx", recipe, dataset, folder)
    done, _ = ranks.run("jobs.compress.qat:quantize_aware", request, 2)
    assert done["settings"]["learnt"] > 0
    params, nonzero = count_params(folder / "model.onnx")
    assert nonzero < 0.3 * params
