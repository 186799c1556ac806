"""Whole jobs through the whole stack: real Ray, real DeepSpeed, real files."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.compress.pack import unpack
from jobs.errors import BudgetUnmet, JobFailed
from jobs.records import RunReport
from jobs.storage import read_json
from orchestrator import JobSpec, artifacts, run
from orchestrator.prediction import predict_with
from orchestrator.runs import read_lines

pytestmark = pytest.mark.usefixtures("local_ray")

DIGITS: dict[str, Any] = {
    "name": "digits",
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64},
    },
    "model": {
        "name": "lenet",
        "args": {"conv_widths": [8, 16], "linear_widths": [32], "kernel": 3, "batch_norm": True},
    },
    "train": {
        "epochs": 4,
        "batch_size": 64,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "schedule": "one_cycle",
    },
    "search": {
        "trials": 3,
        "compress_trials": 2,
        "concurrency": 2,
        "space": {
            "train.optimizer.lr": {"loguniform": [1e-3, 3e-2]},
            "compress.prune.ratio": {"uniform": [0.3, 0.6]},
        },
        "objectives": {"metric": "max", "bytes": "min"},
    },
    "compress": {
        "prune": {"recover": {"epochs": 2, "distill": {"weight": 0.5}}},
        "quantize": {"schemes": ["int8_static", "fp16"]},
        "budget": {"max_metric_drop": 0.1},
    },
}
ARTIFACTS = {"dense", "dense-int8_static", "dense-fp16", "pruned", "pruned-int8_static", "pruned-fp16"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def searched(storage: Path, local_ray: object) -> RunReport:
    return run(JobSpec.parse(DIGITS), runs=storage)


def run_dir(storage: Path, report: RunReport) -> Path:
    return storage / report.run_id


def test_a_search_ends_in_a_selected_artifact_within_the_budget(searched: RunReport):
    assert {a.name for a in searched.artifacts} == ARTIFACTS
    selected = next(a for a in searched.artifacts if a.name == searched.selected)
    dense = next(a for a in searched.artifacts if a.name == "dense")
    assert selected.fits_budget
    assert selected.measurement.bytes < dense.measurement.bytes / 2
    assert selected.measurement.metric_delta.value >= -0.1
    assert dense.measurement.metric.value > 0.8
    assert dense.measurement.macs > selected.measurement.macs > 0
    assert dense.measurement.params > selected.measurement.params > 0
    assert {a.name for a in searched.artifacts if a.test_metric} == {"dense", searched.selected}
    assert {a.parent for a in searched.artifacts} == {None, "dense", "pruned"}


def test_the_run_directory_holds_what_is_promised(storage: Path, searched: RunReport):
    folder = run_dir(storage, searched)
    for name in ("spec.yaml", "plan.json", "events.jsonl", "metrics.jsonl", "report.json", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    trials = pq.read_table(folder / "trials.parquet").to_pylist()
    assert [t["phase"] for t in trials] == ["train"] * 3 + ["compress"] * 2
    assert all(t["state"] in ("completed", "pruned") for t in trials)
    metrics = read_lines(folder / "metrics.jsonl")
    assert {m["stage"] for m in metrics} >= {"train"}
    assert {"t", "stage", "trial", "epoch", "step", "split", "loss", "metric", "lr"} <= set(metrics[0])
    for name in ARTIFACTS:
        assert (folder / "artifacts" / name / "artifact.json").exists()
    assert searched.goodput.wall_s > searched.goodput.productive_s > 0
    assert 0 < searched.goodput.ettr < 1


def test_a_second_run_reuses_every_stage(storage: Path, searched: RunReport):
    before = {p: p.stat().st_mtime_ns for p in (storage / "stages").glob("*/manifest.json")}
    again = run(JobSpec.parse(DIGITS), runs=storage)
    assert {p: p.stat().st_mtime_ns for p in (storage / "stages").glob("*/manifest.json")} == before
    assert all(stage["reused"] for stage in again.stages)
    assert again.selected == searched.selected


def test_another_quantization_reuses_the_training(storage: Path, searched: RunReport):
    spec = JobSpec.parse(DIGITS).replace({"compress.quantize.schemes": ["int8_dynamic"]})
    report = run(spec, runs=storage)
    reused = {stage["name"]: stage["reused"] for stage in report.stages}
    assert all(reused[name] for name in ("prepare", "search", "train", "prune"))
    assert not reused["measure"]
    assert "pruned-int8_dynamic" in {a.name for a in report.artifacts}


def test_artifacts_verify_and_predict_on_their_own(storage: Path, searched: RunReport, tmp_path: Path):
    folder = run_dir(storage, searched) / "artifacts" / searched.selected
    result = artifacts.verify(folder)
    assert result["ok"], result
    assert [check["name"] for check in result["checks"]] == ["sha256", "outputs", "metric"]
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(tmp_path / "new.npz", x=digits.images[:50].astype(np.uint8))
    predictions = list(predict_with(folder, tmp_path / "new.npz"))
    right = sum(int(p["prediction"]) == t for p, t in zip(predictions, digits.target[:50], strict=True))
    assert right > 40
    assert sum(predictions[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)


def test_a_pack_is_an_artifact_that_restores_what_was_measured(storage: Path, local_ray: object, tmp_path: Path):
    document = {key: value for key, value in DIGITS.items() if key != "search"}
    pack = {"sparsity": 0.7, "codebook_bits": 4, "recover": {"epochs": 2}, "finetune": {"epochs": 1}}
    document["compress"] = {"pack": pack, "budget": {"max_metric_drop": 1.0}}
    report = run(JobSpec.parse(document), runs=storage)
    assert [a.name for a in report.artifacts] == ["dense", "packed"]
    dense, packed = report.artifacts
    assert report.selected == "packed"
    assert (packed.stage, packed.parent, [f.path for f in packed.files]) == ("pack", "dense", ["model.thpack"])
    assert packed.measurement.bytes == packed.files[0].bytes < dense.measurement.bytes / 4
    assert packed.measurement.params <= dense.measurement.params
    assert packed.recipe["ratio"] == pytest.approx(packed.recipe["fp32_bytes"] / packed.files[0].bytes)
    assert packed.test_metric is not None
    assert "recover/packed" in report.curves
    folder = run_dir(storage, report) / "artifacts" / "packed"
    assert artifacts.verify(folder)["ok"]
    restored = unpack(folder / "model.thpack", tmp_path)
    stage = next(stage["hash"] for stage in report.stages if stage["name"] == "export/packed")
    assert restored["model.onnx"].read_bytes() == (storage / "stages" / stage / "model.onnx").read_bytes()
    again = run(JobSpec.parse(document), runs=storage)
    assert all(stage["reused"] for stage in again.stages)


def test_a_changed_file_does_not_verify(storage: Path, searched: RunReport, tmp_path: Path):
    import shutil

    from jobs.errors import ArtifactError

    folder = tmp_path / "dense"
    shutil.copytree(run_dir(storage, searched) / "artifacts" / "dense", folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        artifacts.verify(folder)


# Smooth, and without Adam: nothing that rounding alone could tip over.
SMOOTH: dict[str, Any] = {
    **{key: value for key, value in DIGITS.items() if key != "search"},
    "model": {"name": "mlp", "args": {"hidden": [64, 32], "activation": "tanh", "dropout": 0.1}},
    "train": {"steps": 60, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.2}},
    "compress": {},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> list[float]:
    """The losses of one worker."""
    folder = tmp_path_factory.mktemp("alone")
    return losses(run(JobSpec.parse(SMOOTH), runs=folder), folder)


def test_one_and_two_workers_give_the_same_losses(alone: list[float], tmp_path: Path):
    two = run(JobSpec.parse({**SMOOTH, "layout": {"data": 2}, "resources": {"workers": 2}}), runs=tmp_path)
    assert two.layout["data"] == 2
    assert alone[-1] < 0.5 * alone[0]
    np.testing.assert_allclose(losses(two, tmp_path), alone, rtol=1e-4)


def test_tensor_peers_train_what_one_worker_trains_and_the_rest_of_the_job_follows(alone: list[float], tmp_path: Path):
    compress = {"prune": {"round_to": 2, "recover": {"epochs": 1}}, "quantize": {"schemes": ["int8_dynamic"]}}
    layout = {"layout": {"tensor": 2}, "resources": {"workers": 2}}
    two = run(JobSpec.parse({**SMOOTH, **layout, "compress": compress}), runs=tmp_path)
    assert two.layout["tensor"] == 2
    np.testing.assert_allclose(losses(two, tmp_path), alone, rtol=1e-4)
    assert {a.name for a in two.artifacts} == {"dense", "dense-int8_dynamic", "pruned", "pruned-int8_dynamic"}


def test_a_language_model_in_a_pipeline_goes_through_all_stages(tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("the loss falls step by step, and every layout agrees. " * 400)
    document = {
        "name": "words",
        "data": {"source": {"kind": "text", "path": str(text), "length": 16, "tokenizer": {"kind": "word"}}},
        "model": {"name": "transformer", "args": {"layers": 2, "width": 32, "heads": 2}},
        "train": {"steps": 30, "batch_size": 16, "optimizer": {"name": "adamw", "lr": 1e-2}},
        "layout": {"pipeline": 2, "zero_stage": 1},
        "resources": {"workers": 2},
        "compress": {"quantize": {"schemes": ["int8_dynamic", "fp16"]}, "budget": {"max_metric_drop": 1.0}},
    }
    report = run(JobSpec.parse(document), runs=tmp_path / "runs")
    dense = next(a for a in report.artifacts if a.name == "dense")
    assert dense.measurement.metric.name == "perplexity"
    assert dense.measurement.metric.value < 3.0  # of some ten words, in an order that never changes
    assert dense.measurement.parity_max_abs_diff < 1e-3
    smallest = min(report.artifacts, key=lambda artifact: artifact.measurement.bytes)
    assert smallest.measurement.bytes < dense.measurement.bytes


def losses(report: RunReport, storage: Path) -> list[float]:
    """Of each step of the training."""
    digest = next(stage["hash"] for stage in report.stages if stage["name"] == "train")
    found: list[float] = read_json(storage / "stages" / digest / "history.json")["losses"]
    return found


def test_a_joint_search_trains_and_compresses_in_one_trial(tmp_path: Path):
    spec = JobSpec.parse(DIGITS).replace(
        {
            "search.mode": "joint",
            "search.trials": 2,
            "search.concurrency": 1,
            "search.algorithm": "random",
            "search.scheduler": "none",
            "train.epochs": 2,
        }
    )
    report = run(spec, runs=tmp_path)
    assert report.search is not None
    assert [t["phase"] for t in report.search["trials"]] == ["joint", "joint"]
    assert all(set(t["values"]) == {"metric", "latency_ms", "bytes"} for t in report.search["trials"])


def test_several_winners_each_with_their_own_family(tmp_path: Path):
    spec = JobSpec.parse(DIGITS).replace(
        {
            "search.trials": 2,
            "search.concurrency": 1,
            "search.winners": 2,
            "search.objectives": {"metric": "max"},
            "search.algorithm": "grid",
            "search.scheduler": "none",
            "search.space": {"train.optimizer.lr": {"choice": [0.003, 0.01]}},
            "train.epochs": 2,
            "compress": {"quantize": {"schemes": ["fp16"]}},
        }
    )
    report = run(spec, runs=tmp_path)
    assert {a.name for a in report.artifacts} == {"dense", "dense-fp16", "dense-2", "dense-2-fp16"}


def test_a_credit_like_table_goes_through_all_stages(tmp_path: Path):
    examples = Path(__file__).parents[2] / "examples"
    runpy.run_path(str(examples / "synthetic_credit.py"))["write_table"](tmp_path / "credit.csv", 800)
    spec = JobSpec.load(
        examples / "credit.yaml",
        [f"data.source.path={tmp_path / 'credit.csv'}", "search=null", "train.epochs=8", "data.split.calibration=64"],
    ).replace({"compress.budget.max_metric_drop": 0.05, "compress.quantize.schemes": ["int8_dynamic"]})
    report = run(spec, runs=tmp_path / "runs")
    dense = next(a for a in report.artifacts if a.name == "dense")
    assert dense.measurement.metric.name == "roc_auc"
    assert dense.measurement.metric.value > 0.75
    assert dense.measurement.details["classes"] == ["no", "yes"]
    folder = tmp_path / "runs" / report.run_id / "artifacts" / report.selected
    rows = ["30,,rent,skilled,3,9000,60", "60,90000,own,new-job,1,900,6"]
    (tmp_path / "new.csv").write_text("\n".join(["age,income,housing,job,district,amount,duration", *rows]))
    risky, safe = predict_with(folder, tmp_path / "new.csv")
    assert risky["probabilities"]["yes"] > safe["probabilities"]["yes"]


def test_a_regression_goes_through_all_stages(tmp_path: Path):
    spec = JobSpec.parse(
        {
            "name": "diabetes",
            "data": {
                "source": {"kind": "builtin", "name": "diabetes"},
                "split": {"calibration": 64, "validation": 0.2},
            },
            "metric": "rmse",
            "model": {"name": "mlp", "args": {"hidden": [32, 16]}},
            "train": {"epochs": 30, "batch_size": 32, "loss": "mse", "optimizer": {"name": "adam", "lr": 1e-2}},
            "compress": {
                "prune": {"ratio": 0.3, "recover": {"epochs": 5, "distill": {}}},
                "quantize": {"schemes": ["int8_static", "int8_dynamic", "fp16"]},
                "budget": {"max_metric_drop": 5.0},
            },
        }
    )
    report = run(spec, runs=tmp_path)
    dense = next(a for a in report.artifacts if a.name == "dense")
    assert dense.measurement.metric.value < 75  # the target's own deviation is 77
    assert set(dense.measurement.details) == {"rmse", "mae", "r2"}
    assert next(a for a in report.artifacts if a.name == report.selected).fits_budget


def test_a_required_budget_that_nothing_meets_fails_with_the_report_written(tmp_path: Path):
    spec = JobSpec.parse(DIGITS | {"search": None}).replace(
        {
            "train.epochs": 1,
            "compress": {"quantize": {"schemes": ["fp16"]}, "budget": {"max_bytes": 10, "required": True}},
        }
    )
    with pytest.raises(BudgetUnmet):
        run(spec, runs=tmp_path)
    (folder,) = [p.parent for p in tmp_path.glob("*/spec.yaml")]
    assert read_json(folder / "report.json")["selected"] == "dense"


def test_a_search_whose_trials_all_fail_counts_the_causes(tmp_path: Path):
    spec = JobSpec.parse(DIGITS).replace(
        {
            "train.optimizer": {"name": "sgd", "lr": 1.0, "weight_decay": 10.0},
            "train.schedule": "constant",
            "search.space": {"train.optimizer.lr": {"uniform": [90.0, 100.0]}},
            "search.objectives": {"metric": "max"},
            "search.trials": 2,
            "search.concurrency": 1,
        }
    )
    with pytest.raises(JobFailed, match=r"none of the 2 trials completed: .*loss is"):
        run(spec, runs=tmp_path)
