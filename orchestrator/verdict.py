"""What is said of an artifact in words: what it gained, and where it is worse than its parent. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from jobs.records import Artifact, Measurement
from jobs.spec.compress import Budget
from jobs.spec.job import HIGHER_IS_BETTER
from orchestrator.units import (
    format_amount,
    format_apart,
    format_bytes,
    format_change,
    format_metric,
    format_ms,
    format_ratio,
    format_relative,
)

Pace = Literal["faster", "as fast", "slower", "unknown"]

AS_FAST = 0.02
"""Latencies that differ by less count as alike, even where so many runs tell them apart."""
_ROUNDING = 1e-9
"""Slack of a comparison with the budget: 0.935 - 0.930 is a little more than 0.005 in floating point."""


def verdict(
    artifact: Artifact, by_name: Mapping[str, Artifact], dense: Artifact, budget: Budget, reasons: list[str]
) -> str:
    """What an artifact gained against the dense model, then where it is worse than its parent."""
    parts = []
    if artifact.name == dense.name:
        parts.append("the dense model that the others are measured against")
    else:
        timed = artifact.stage != "pack"
        gained = gains(artifact.measurement, dense.measurement, dense.name, timed=timed)
        parts.append(gained or "nothing gained over the dense model")
        if not timed:
            parts.append("an archive: unpacked, it is a float model of the dense one's size and speed")
    if reasons:
        parts.append(f"out of budget: {', '.join(reasons)}")
    if artifact.name != dense.name:
        parent = parent_of(artifact, by_name, dense).measurement
        if timed and (slower := _slower(artifact, by_name, dense)):
            parts.append(f"slower than its parent ({slower})")
        if artifact.measurement.bytes > parent.bytes:
            figures = format_apart(artifact.measurement.bytes, parent.bytes, format_bytes)
            parts.append(f"bigger than its parent ({figures[0]} against {figures[1]})")
        if saturated := _saturates(artifact.measurement):
            parts.append(saturated)
        if unclear := not_resolvable(artifact.measurement, budget):
            parts.append(unclear)
    return "; ".join(parts)


def judge_test(artifacts: Sequence[Artifact], *, selected: str, dense: str, budget: Budget) -> tuple[Artifact, ...]:
    """Adds to the selected artifact's verdict where it misses the budget on test. Changes no choice.

    Artifacts without a `test_metric` are returned as they are.
    """
    by_name = {artifact.name: artifact for artifact in artifacts}
    ours, theirs = by_name[selected].test_metric, by_name[dense].test_metric
    if ours is None or theirs is None or budget.max_metric_drop is None:
        return tuple(artifacts)
    sign = 1 if ours.name in HIGHER_IS_BETTER else -1
    drop = sign * (theirs.value - ours.value)
    if not exceeds(drop, budget.max_metric_drop):
        return tuple(artifacts)
    miss = f"misses the budget on test: {drop_in_words(ours.name, drop, budget.max_metric_drop)}"
    return tuple(
        artifact.model_copy(update={"verdict": "; ".join(filter(None, (artifact.verdict, miss)))})
        if artifact.name == selected
        else artifact
        for artifact in artifacts
    )


def gains(measurement: Measurement, dense: Measurement, dense_name: str = "dense", *, timed: bool = True) -> str:
    """What got smaller and faster than the dense model, and how its metric moved: `3.6× smaller, …`.

    Without `timed`, nothing is said of speed.
    """
    parts = []
    if 0 < measurement.bytes < dense.bytes:
        parts.append(f"{format_ratio(dense.bytes / measurement.bytes)} smaller")
    speed = pace(measurement, dense, dense_name, "batch_1") if timed else "unknown"
    if speed == "faster":
        parts.append(f"{format_ratio(p50(dense) / p50(measurement))} faster")
    elif speed == "as fast" and parts:
        parts.append("about as fast")
    drop = metric_drop(measurement, dense)
    if drop is not None and (parts or drop < 0):
        ours_metric, name = measurement.metric.value, measurement.metric.name
        parts.append(f"{name} {format_change(name, -drop)}{format_relative(name, ours_metric, dense.metric.value)}")
    return ", ".join(parts)


def _slower(artifact: Artifact, by_name: Mapping[str, Artifact], dense: Artifact) -> str:
    """The batch sizes at which the median latency is above the parent's, in words."""
    measurement, parent = artifact.measurement, parent_of(artifact, by_name, dense)
    parts = []
    for key, latency in sorted(measurement.latency_ms.items(), key=lambda item: (len(item[0]), item[0])):
        if pace(measurement, parent.measurement, parent.name, key) == "slower":
            figures = format_apart(latency.p50, parent.measurement.latency_ms[key].p50, format_ms)
            parts.append(f"{key.replace('_', ' ')}: {figures[0]} against {figures[1]}")
    return ", ".join(parts)


def pace(measurement: Measurement, other: Measurement, name: str, key: str) -> Pace:
    """How a latency compares with that of the artifact `name`, measured in turns with it.

    `as fast`: the interval of the ratio holds 1, or the two are within 2 % of each other.
    """
    ours, theirs = measurement.latency_ms.get(key), other.latency_ms.get(key)
    if ours is None or theirs is None or theirs.p50 <= 0:
        return "unknown"
    found = ours.against.get(name)
    ratio = found.value if found else ours.p50 / theirs.p50
    low, high = found.ci95 if found else (ratio, ratio)
    if low <= 1.0 <= high or abs(ratio - 1.0) < AS_FAST:
        return "as fast"
    return "slower" if ratio > 1.0 else "faster"


def _saturates(measurement: Measurement) -> str:
    exact = measurement.metric_exact
    if exact is None:
        return ""
    name = exact.name
    figures = (format_metric(name, measurement.metric.value), format_metric(name, exact.value))
    return f"8-bit sums saturate on this processor: {name} {figures[0]}, {figures[1]} without"


def not_resolvable(measurement: Measurement, budget: Budget) -> str:
    """Words for a paired interval that is wider than the budget itself; empty where it is not."""
    delta, allowed = measurement.metric_delta, budget.max_metric_drop
    if delta is None or allowed is None or not exceeds(delta.ci95[1] - delta.ci95[0], allowed):
        return ""
    way = "drop" if measurement.metric.name in HIGHER_IS_BETTER else "rise"
    return f"not resolvable with n = {measurement.metric.n}: the 95 % interval of the {way} is wider than the budget"


def drop_in_words(name: str, drop: float, allowed: float) -> str:
    verb = "drops" if name in HIGHER_IS_BETTER else "rises"
    figures = format_apart(drop, allowed, lambda amount, digits: format_amount(name, amount, digits))
    return f"{name} {verb} by {figures[0]}, {figures[1]} allowed"


def metric_drop(measurement: Measurement, dense: Measurement) -> float | None:
    """How much worse than the dense model, in the metric's units; None where it was not measured."""
    if measurement.metric_delta is None:
        return 0.0 if measurement == dense else None
    return None if math.isnan(measurement.metric_delta.value) else -measurement.metric_delta.value


def p50(measurement: Measurement) -> float:
    """Median latency at batch 1 in ms; NaN where it was not measured, so that no comparison holds."""
    latency = measurement.latency_ms.get("batch_1")
    return math.nan if latency is None else latency.p50


def parent_of(artifact: Artifact, by_name: Mapping[str, Artifact], dense: Artifact) -> Artifact:
    return by_name.get(artifact.parent or dense.name, dense)


def exceeds(value: float, allowed: float) -> bool:
    return value > allowed + _ROUNDING * max(1.0, abs(allowed))
