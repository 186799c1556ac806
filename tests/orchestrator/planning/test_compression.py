"""What a plan refuses of pruning and low rank, and what it lets a search try."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import SpecError
from jobs.layout import ParallelLayout
from jobs.spec import JobSpec
from orchestrator.planning.compression import check_rounding
from orchestrator.planning.layouts import PROCESS_BYTES
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage
from orchestrator.stage_configs import low_rank_config

DIGITS: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16]}},
    "train": {"epochs": 2, "batch_size": 32},
}
LSTM = {"name": "lstm", "args": {"hidden": 24}}
TRANSFORMER = {"name": "transformer", "args": {"layers": 2, "width": 32, "heads": 4}}


@pytest.fixture
def sequences(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "sequences.npz"
    x = np.random.default_rng(0).random((200, 9, 3))
    np.savez(path, x=x, y=np.arange(200) % 4, lengths=np.full(200, 9))
    return {"source": {"kind": "npz", "path": str(path)}, "normalize": "none"}


def digits(**values: Any) -> JobSpec:
    return JobSpec.parse(DIGITS).replace(values)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt layer": (
        {"compress.prune.ignore": ["linaer1"]},
        r"compress\.prune\.ignore: the model has no such layer .*linear1\.1.*did you mean 'linear1'",
    ),
    "a misspelt layer to protect": (
        {"compress.prune.protect": ["conv1.5"]},
        r"compress\.prune\.protect: the model has no such layer",
    ),
    "heads that it has not": (
        {"compress.prune.what": ["heads"]},
        r"compress\.prune\.what\.0: lenet has none .*allowed: channels, neurons",
    ),
    "rounding beyond every width": (
        {"compress.prune.round_to": 17},
        r"compress\.prune\.round_to: is more than any layer is wide.*at most 16",
    ),
    "a layer pruned away": (
        {"compress.prune.ratio": 0.9},
        r"compress\.prune\.ratio: .*nothing of layer 'conv1\.0' with its 4 channels.*at most 0\.875",
    ),
    "no layer so large": (
        {"compress.low_rank.min_size": 64},
        r"compress\.low_rank\.min_size: no linear layer .*at most 16",
    ),
    "a layer of no low rank": (
        {"compress.low_rank": {"min_size": 8, "ignore": ["linear9"]}},
        r"compress\.low_rank\.ignore: .*did you mean 'linear1'",
    ),
    "no hidden layer": (
        {"model": {"name": "mlp", "args": {"hidden": []}}, "compress.prune.ratio": 0.5},
        r"compress\.prune: model mlp has no hidden layer",
    ),
}


def test_what_can_not_be_packed_is_refused(storage: Storage, sequences: dict[str, Any]) -> None:
    spec = JobSpec.parse(DIGITS | {"data": sequences, "model": LSTM, "compress": {"pack": {}}})
    with pytest.raises(SpecError, match=r"compress\.pack: model lstm can't be packed: .*recurrent"):
        plan_job(spec, storage)
    searched = {"model": {"name": "lstm"}, "search": {"space": {"compress.pack.sparsity": {"uniform": [0.8, 0.9]}}}}
    with pytest.raises(SpecError, match=r"compress\.pack: model lstm"):
        plan_job(JobSpec.parse(DIGITS | {"data": sequences} | searched), storage)


def test_all_that_compression_makes_stands_side_by_side_in_a_plan(storage: Storage) -> None:
    every = {"prune": {}, "low_rank": {"min_size": 8}, "quantize": {}, "pack": {}}
    plan = plan_job(digits(compress=every), storage)
    names = [stage.name for stage in plan.stages if stage.action == "run"]
    assert names[1:] == ["train", "prune", "low_rank", "export", "quantize", "share", "pack", "measure", "test"]
    assert plan.hashes["share"] == plan_job(digits(compress={"pack": {}}), storage).hashes["share"]


@pytest.mark.parametrize("compress", ["prune", "low_rank", "pack"])
def test_recovery_leaves_the_layout_of_the_training(compress: str, storage: Storage) -> None:
    """A batch that two stages of a pipeline share as one need not divide over two data-parallel workers."""
    section = {"min_size": 8} if compress == "low_rank" else {}
    values = {"resources.workers": 2, "layout": {"pipeline": 2}, "train.batch_size": 31}
    plan_job(digits(**values), storage)
    with pytest.raises(SpecError, match="so the recovery after pruning runs"):
        plan_job(digits(**values, compress={compress: section}), storage)


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_has_no_layers_for_is_refused(case: str, storage: Storage) -> None:
    values, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        plan_job(digits(**values), storage)


def test_rounding_goes_with_the_tensor_degree(storage: Storage) -> None:
    values: dict[str, Any] = {"resources.workers": 2, "layout": {"tensor": 2}}
    with pytest.raises(SpecError, match=r"compress\.prune\.round_to: .*tensor degree 2.*a multiple of 2"):
        plan_job(digits(**values, **{"compress.prune.ratio": 0.5}), storage)
    plan_job(digits(**values, **{"compress.prune.round_to": 4}), storage)
    unasked = digits(**{"resources.workers": 2, "compress.prune.ratio": 0.5})
    (warning,) = check_rounding(unasked, plan_job(unasked, storage).dataset, ParallelLayout(tensor=2))
    assert "a multiple of 2" in warning
    plan_job(digits(**values, **{"compress.prune": {"method": "magnitude"}}), storage)


def test_heads_are_rounded_with_their_features(storage: Storage, sequences: dict[str, Any]) -> None:
    values: dict[str, Any] = {"resources.workers": 2, "layout": {"tensor": 2}}
    base = JobSpec.parse(DIGITS | {"data": sequences, "model": TRANSFORMER}).replace(values)
    with pytest.raises(SpecError, match=r"round_to: .*heads have 8 features.*a multiple of 16"):
        plan_job(base.replace({"compress.prune.round_to": 2}), storage)
    plan_job(base.replace({"compress.prune": {"round_to": 2, "what": ["neurons"]}}), storage)


def test_a_model_that_one_worker_does_not_hold_is_not_pruned(storage: Storage) -> None:
    large = digits(model={"name": "mlp", "args": {"hidden": [2048, 2048]}})
    params = plan_job(large, storage).model.params
    prune: dict[str, Any] = {"compress.prune": {"ratio": 0.5}}
    low_rank: dict[str, Any] = {"compress.low_rank": {}}
    taylor = {"compress.prune": {"importance": "taylor"}}

    def plan(values: dict[str, Any], copies: float) -> None:
        each = PROCESS_BYTES + int(4 * params * copies)
        plan_job(large.replace(values), storage, memory_bytes=int(each / 0.8) + 4)

    pack: dict[str, Any] = {"compress.pack": {}}
    for values, name in ((prune, "prune"), (low_rank, "low_rank"), (pack, "pack")):
        plan(values, 2.1)
        with pytest.raises(SpecError, match=rf"compress\.{name}: every worker holds the whole model 2 times"):
            plan(values, 1.9)
    plan(taylor, 4.1)
    with pytest.raises(SpecError, match=r"whole model 4 times.*or importance: magnitude"):
        plan(taylor, 3.9)
    plan({}, 0.1)  # what does not prune is warned alone


@pytest.mark.parametrize("method", ["structured", "magnitude", "nm"])
@pytest.mark.parametrize("model", [LSTM, TRANSFORMER])
def test_recurrence_and_attention_can_be_pruned(
    model: dict[str, Any], method: str, storage: Storage, sequences: dict[str, Any]
) -> None:
    spec = JobSpec.parse(DIGITS | {"data": sequences, "model": model, "compress": {"prune": {"method": method}}})
    assert {stage.name: stage.action for stage in plan_job(spec, storage).stages}["prune"] == "run"


def test_low_rank_comes_after_pruning_and_knows_its_parent(storage: Storage) -> None:
    alone = digits(**{"compress.low_rank": {"min_size": 8}})
    after = alone.replace({"compress.prune": {"ratio": 0.5}})
    plans = [plan_job(spec, storage) for spec in (alone, after)]
    names = [[stage.name for stage in plan.stages if stage.action == "run"] for plan in plans]
    assert names[0][:4] == ["prepare", "train", "low_rank", "export"]
    assert names[1][:5] == ["prepare", "train", "prune", "low_rank", "export"]
    assert plans[0].hashes["low_rank"] != plans[1].hashes["low_rank"]
    assert low_rank_config(alone) == low_rank_config(after)


def test_a_search_may_try_methods_ratios_and_importances(storage: Storage) -> None:
    space = {
        "compress.prune.ratio": {"uniform": [0.2, 0.6]},
        "compress.prune.importance": {"choice": ["magnitude", "taylor", "activation"]},
        "compress.prune.method": {"choice": ["structured", "magnitude"]},
    }
    spec = digits(search={"space": space})
    assert "search/compress" in [stage.name for stage in plan_job(spec, storage).stages]
    tried = spec.replace({"compress.prune.ratio": 0.3, "compress.prune.importance": "taylor"}).compress.prune
    assert tried is not None
    assert (tried.ratio, tried.importance) == (0.3, "taylor")
    with pytest.raises(SpecError, match=r"importance"):  # what does not go together is a failed trial
        spec.replace({"compress.prune.method": "magnitude", "compress.prune.importance": "taylor"})


def test_huggingface_is_pruned_by_single_weights_alone(storage: Storage) -> None:
    from jobs.models.registry import prunable
    from jobs.spec.model import HuggingFaceArgs, HuggingFaceModel

    model = HuggingFaceModel(name="huggingface", args=HuggingFaceArgs(config={"model_type": "bert"}))
    assert "magnitude and nm" in prunable(model, "structured")
    assert prunable(model, "magnitude") == prunable(model, "nm") == ""
