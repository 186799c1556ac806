"""Made-up runs that look like real ones."""

import math
import random
from typing import Any

from jobs.records import Artifact, Delta, Goodput, Interval, Latency, Measurement, RunReport
from jobs.spec.compress import Budget
from orchestrator.selection import select
from orchestrator.verdict import judge_test

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPACE = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.optimizer.weight_decay": {"loguniform": [1e-6, 1e-1]},
    "model.args.dropout": {"uniform": [0.0, 0.5]},
    "model.args.activation": {"choice": ["relu", "gelu", "silu"]},
    "train.batch_size": {"logint": [32, 512]},
}


def confusion_of(classes: tuple[str, ...], accuracy: float, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    counts = [[0] * len(classes) for _ in classes]
    for row in range(len(classes)):
        for _ in range(120):
            wrong = draw.random() > accuracy
            column = (row + draw.choice((1, 2, 2, 3))) % len(classes) if wrong else row
            counts[row][column] += 1
    return counts


def class_details(classes: tuple[str, ...] = CLASSES, accuracy: float = 0.93, seed: int = 0) -> dict[str, Any]:
    counts = confusion_of(classes, accuracy, seed)
    precision = [counts[i][i] / max(1, sum(row[i] for row in counts)) for i in range(len(classes))]
    recall = [counts[i][i] / sum(counts[i]) for i in range(len(classes))]
    f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)]
    return {"classes": list(classes), "precision": precision, "recall": recall, "f1": f1, "confusion": counts}


def an_artifact(
    name: str,
    parent: str | None,
    stage: Any,
    value: float,
    size: int,
    ms: float,
    *,
    metric: str = "accuracy",
    dense_value: float = 0.9312,
    half_width: float = 0.0022,
    details: dict[str, Any] | None = None,
    test: bool = False,
) -> Artifact:
    sign = -1 if metric in ("rmse", "perplexity") else 1
    delta = sign * (value - dense_value)
    params = 44_426 if stage == "dense" else 11_800
    interval = Interval(name=metric, value=value, ci95=(value - 0.007, value + 0.0066), n=6000, split="validation")
    return Artifact(
        name=name,
        parent=parent,
        stage=stage,
        recipe={},
        files=(),
        measurement=Measurement(
            metric=interval,
            metric_delta=None if parent is None else Delta(value=delta, ci95=(delta - half_width, delta + half_width)),
            details=class_details(accuracy=value, seed=size) if details is None else details,
            bytes=size,
            bytes_zstd=int(size * 0.88),
            params=params,
            nonzero_params=params,
            macs=281_640 if stage == "dense" else 90_210,
            latency_ms={
                "batch_1": Latency(p50=ms, p90=ms * 1.18, n=2000),
                "batch_64": Latency(p50=ms * 34, p90=ms * 38, n=80),
            },
            parity_max_abs_diff=2.4e-6 if stage != "quantize" else 0.083,
        ),
        test_metric=Interval(
            name=metric, value=value - 0.004, ci95=(value - 0.0093, value + 0.0011), n=10_000, split="test"
        )
        if test
        else None,
    )


def default_artifacts() -> tuple[Artifact, ...]:
    return (
        an_artifact("dense", None, "dense", 0.9312, 447_120, 0.0561, test=True),
        an_artifact("dense-int8_static", "dense", "quantize", 0.9290, 124_880, 0.0874),
        an_artifact("dense-int8_dynamic", "dense", "quantize", 0.9303, 118_020, 0.311),
        an_artifact("dense-fp16", "dense", "quantize", 0.9312, 226_300, 0.0583),
        an_artifact("pruned", "dense", "prune", 0.9287, 125_410, 0.0372),
        an_artifact("pruned-int8_static", "pruned", "quantize", 0.9281, 41_930, 0.0497, test=True),
        an_artifact("pruned-int8_dynamic", "pruned", "quantize", 0.9225, 39_870, 0.1262),
        an_artifact("pruned-fp16", "pruned", "quantize", 0.9288, 66_200, 0.0391),
    )


def curve(epochs: int, top: float, seed: int = 0, start: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for epoch in range(start, epochs + start):
        share = 1 - math.exp(-3.5 * epoch / epochs)
        lr = 1e-3 * math.sin(math.pi * min(1.0, (epoch + 0.2) / (epochs + 1)))
        loss = 0.18 + 0.9 * (1 - share)
        noise = draw.uniform(-0.008, 0.008)
        rows += [
            {"epoch": epoch, "step": epoch * 422, "split": "train", "loss": loss, "metric": None, "lr": lr},
            {
                "epoch": epoch,
                "step": epoch * 422,
                "split": "validation",
                "loss": loss * 0.8 + 0.09 + noise,
                "metric": top - 0.2 * (1 - share) + noise / 4,
                "lr": None,
            },
        ]
    return rows


def a_trial(number: int, phase: str = "train", seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed * 10_000 + number)
    lr = 10 ** draw.uniform(-4, -1)
    params = {
        "train.optimizer.lr": lr,
        "train.optimizer.weight_decay": 10 ** draw.uniform(-6, -1),
        "model.args.dropout": draw.uniform(0, 0.5),
        "model.args.activation": draw.choice(("relu", "gelu", "silu")),
        "train.batch_size": round(2 ** draw.uniform(5, 9)),
    }
    quality = 0.935 - 0.03 * (math.log10(lr) + 2.6) ** 2 + draw.uniform(-0.006, 0.006)
    state = "failed" if number % 17 == 16 else "pruned" if quality < 0.90 and number > 3 else "completed"
    epochs = {"failed": 1, "pruned": draw.randint(1, 4), "completed": 10}[state]
    points = [quality - 0.25 * math.exp(-0.6 * (epoch + 1)) for epoch in range(epochs)]
    values: dict[str, float] = {"metric": quality} if state == "completed" else {}
    if phase != "train":
        ratio = draw.uniform(0.2, 0.8)
        params = {"compress.prune.ratio": ratio}
        quality = 0.931 - 0.03 * ratio**4 + draw.uniform(-0.001, 0.001)
        state, points = "completed", []
        values = {"metric": quality, "bytes": 447_000 * (1 - ratio) ** 1.6, "latency_ms": 0.02 + 0.04 * (1 - ratio)}
    return {
        "number": number,
        "phase": phase,
        "params": params,
        "state": state,
        "cause": "the loss became NaN at step 31" if state == "failed" else "",
        "values": values,
        "violation": 0.931 - 0.005 - quality if phase != "train" else 0.0,
        "curve": points,
        "seconds": draw.uniform(3, 40),
        "steps": epochs * 422,
        "epochs": epochs,
    }


def a_search(trials: int = 40, compress: int = 16) -> dict[str, Any]:
    return {
        "trials": [a_trial(n) for n in range(trials)] + [a_trial(trials + n, "compress") for n in range(compress)],
        "space": {**SPACE, "compress.prune.ratio": {"uniform": [0.2, 0.8]}},
        "objectives": {"metric": "max", "bytes": "min"},
        "mode": "staged",
        "algorithm": "tpe",
        "scheduler": "asha",
        "best": None,
        "pareto": [trials + 3],
    }


def a_report(**changes: Any) -> RunReport:
    budget = changes.pop("budget_section", Budget())
    artifacts = changes.pop("artifacts", None)
    chosen = None
    direction = changes.pop("direction", "max")
    if artifacts is None:
        artifacts = default_artifacts()
    if artifacts:
        chosen = select(artifacts, dense=artifacts[0].name, budget=budget, pick="smallest", metric_direction=direction)
        artifacts = judge_test(chosen.artifacts, selected=chosen.selected, dense=artifacts[0].name, budget=budget)
    fields: dict[str, Any] = {
        "run_id": "lenet-fashion-20261104-091532-7f3a",
        "name": "lenet-fashion",
        "state": "succeeded",
        "layout": {"data": 2, "tensor": 1, "pipeline": 1, "zero_stage": 1},
        "model": {"params": 44_426},
        "dataset": {
            "task": "classification",
            "input_shape": [1, 28, 28],
            "num_samples": {"train": 54_000, "validation": 6000, "test": 10_000},
        },
        "spec": {
            "name": "lenet-fashion",
            "metric": "accuracy",
            "data": {"source": {"kind": "idx", "path": "data/fashion-mnist"}, "normalize": "standardize"},
            "model": {"name": "lenet", "args": {"conv_widths": [6, 16], "dropout": 0.2}},
            "train": {"epochs": 10, "batch_size": 128, "optimizer": {"name": "adamw", "lr": 1e-3}},
            "compress": {"pick": "smallest", "budget": budget.model_dump()},
        },
        "stages": (
            {"name": "prepare", "hash": "a1" * 32, "reused": True, "seconds": 2.1},
            {"name": "search", "hash": "b2" * 32, "reused": False, "seconds": 312.0},
            {"name": "train", "hash": "c3" * 32, "reused": True, "seconds": 96.4},
            {"name": "prune", "hash": "d4" * 32, "reused": False, "seconds": 41.2},
            {"name": "quantize", "hash": "e5" * 32, "reused": False, "seconds": 6.9},
            {"name": "measure", "hash": "f6" * 32, "reused": False, "seconds": 14.8},
        ),
        "curves": {"train": curve(10, 0.9312), "recover/pruned": curve(3, 0.9287, 1)},
        "search": a_search(),
        "artifacts": artifacts,
        "selected": chosen.selected if chosen else "",
        "budget": budget.model_dump(mode="json"),
        "warnings": chosen.warnings if chosen else (),
        "goodput": Goodput(
            wall_s=421.0,
            queued_s=3.0,
            startup_s=21.0,
            productive_s=352.0,
            checkpoint_s=9.0,
            recompute_s=6.0,
            restart_s=14.0,
            restarts=({"stage": "train", "cause": "worker 1 on node 2 was killed", "t": 1762246612.0},),
            ettr=0.84,
        ),
        "environment": {
            "versions": {"torch": "2.13.0", "deepspeed": "0.19.8", "ray": "2.60.0", "onnxruntime": "1.32.0"},
            "host": {"processor": "AMD EPYC", "instructions": ["avx2"], "cpus": 2, "memory_bytes": 25_280_000_000},
        },
    }
    return RunReport(**{**fields, **changes})


def a_regression() -> RunReport:
    options: dict[str, Any] = {"metric": "rmse", "dense_value": 53.1, "half_width": 0.4}
    dense = an_artifact(
        "dense", None, "dense", 53.1, 12_400, 0.011, **options, details={"rmse": 53.1, "mae": 42.7, "r2": 0.512}
    )
    pruned = an_artifact(
        "pruned", "dense", "prune", 53.4, 6100, 0.009, **options, details={"rmse": 53.4, "mae": 43.0, "r2": 0.506}
    )
    return a_report(
        name="diabetes",
        artifacts=(dense, pruned),
        direction="min",
        budget_section=Budget(max_metric_drop=1.0, max_bytes=8000),
        search=None,
    )


def a_language_model() -> RunReport:
    options: dict[str, Any] = {"metric": "perplexity", "dense_value": 24.8, "half_width": 0.05}
    dense, quantized = (
        an_artifact(name, parent, stage, value, size, ms, **options, details=language_details(value))
        for name, parent, stage, value, size, ms in (
            ("dense", None, "dense", 24.8, 2_100_000, 0.43),
            ("dense-int8_dynamic", "dense", "quantize", 25.2, 540_000, 0.23),
        )
    )
    rows = curve(10, 0.0)
    for row in rows:
        row["metric"] = None if row["split"] == "train" else 24.8 + 900.0 / row["epoch"] ** 3
    spec = a_report().spec
    return a_report(
        name="letters",
        artifacts=(dense, quantized),
        direction="min",
        budget_section=Budget(max_metric_drop=0.5),
        search=None,
        curves={"train": rows},
        layout={"data": 2, "tensor": 2, "pipeline": 2, "zero_stage": 1, "offload": "cpu"},
        dataset={
            "task": "language_model",
            "kind": "tokens",
            "input_shape": [128],
            "num_codes": [2048],
            "num_samples": {"train": 9000, "validation": 500, "test": 500},
        },
        spec={
            **spec,
            "metric": "perplexity",
            "data": {"source": {"kind": "text", "path": "data/Synthetic-letters.txt"}},
        },
    )


def language_details(perplexity: float) -> dict[str, Any]:
    bits = math.log2(perplexity)
    return {
        "perplexity": perplexity,
        "accuracy": 0.412,
        "bits_per_token": bits,
        "tokens": 63_500,
        "samples": 500,
    }


def a_failure() -> RunReport:
    return a_report(
        state="failed", artifacts=(), search=None, curves={}, stages=(), environment={}, dataset={}, spec={}
    )
