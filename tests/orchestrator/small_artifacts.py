"""Artifacts with made-up figures, the choice among them, and what is said of them."""

from typing import Any

from jobs.records import Artifact, Delta, Interval, Latency, Measurement
from jobs.spec.compress import Budget
from orchestrator.selection import (
    select,
)

DENSE_ACCURACY = 0.93


def measurement(
    accuracy: float = DENSE_ACCURACY,
    *,
    size: int = 400_000,
    ms: float | None = 0.056,
    ms_64: float = 1.9,
    delta: float | None = None,
    half_width: float = 0.001,
    n: int = 5000,
    metric: str = "accuracy",
) -> Measurement:
    latency = {"batch_64": Latency(p50=ms_64, p90=ms_64 * 1.1, n=100)}
    if ms is not None:
        latency["batch_1"] = Latency(p50=ms, p90=ms * 1.1, n=1000)
    return Measurement(
        metric=Interval(name=metric, value=accuracy, ci95=(accuracy - 0.01, accuracy + 0.01), n=n, split="validation"),
        metric_delta=None if delta is None else Delta(value=delta, ci95=(delta - half_width, delta + half_width)),
        details={},
        bytes=size,
        bytes_zstd=size,
        params=size // 4,
        nonzero_params=size // 4,
        macs=1,
        latency_ms=latency,
        parity_max_abs_diff=0.0,
    )


def artifact(name: str, parent: str | None = "dense", test: float | None = None, **figures: Any) -> Artifact:
    if parent is not None:
        figures.setdefault("delta", figures.get("accuracy", DENSE_ACCURACY) - DENSE_ACCURACY)
    return Artifact(
        name=name,
        parent=parent,
        stage="dense" if parent is None else "quantize",
        recipe={},
        files=(),
        measurement=measurement(**figures),
        test_metric=None
        if test is None
        else Interval(name="accuracy", value=test, ci95=(test - 0.01, test + 0.01), n=5000, split="test"),
    )


DENSE = artifact("dense", None)


def choose(*others: Artifact, pick: Any = "smallest", budget: Budget | None = None, dense: Artifact = DENSE) -> Any:
    return select((dense, *others), dense="dense", budget=budget or Budget(), pick=pick, metric_direction="max")


def verdict_of(name: str, *others: Artifact, **options: Any) -> str:
    verdicts: dict[str, str] = {a.name: a.verdict for a in choose(*others, **options).artifacts}
    return verdicts[name]
