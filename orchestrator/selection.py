"""From trials and measurements to winners: pure, deterministic, and independent of the order of the input.

The Pareto set, the budget and the choice look at the validation split alone. What test says afterwards is
added to the verdict (`orchestrator.verdict.judge_test`), and changes no choice.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from jobs.records import Artifact, Measurement, Trial
from jobs.spec.compress import Budget
from orchestrator.units import format_apart, format_bytes, format_ms
from orchestrator.verdict import (
    drop_in_words,
    exceeds,
    metric_drop,
    not_resolvable,
    p50,
    parent_of,
    verdict,
)

Direction = Literal["min", "max"]
Pick = Literal["smallest", "fastest", "most_accurate"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Selection:
    """What was chosen, and every artifact with its judgement.

    Attributes:
        selected: name of the chosen artifact.
        artifacts: all of them, in the order given, with `pareto`, `fits_budget` and `verdict` filled in.
        warnings: what the user should know about the choice.
    """

    selected: str
    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...]

    @property
    def artifact(self) -> Artifact:
        """The chosen artifact; where it does not fit the budget, nothing does."""
        return next(artifact for artifact in self.artifacts if artifact.name == self.selected)


def pareto_front(points: Mapping[Key, Mapping[str, float]], directions: Mapping[str, Direction]) -> frozenset[Key]:
    """The points that no other one dominates: is nowhere worse and somewhere better.

    Equal points stay together. A point that lacks one of the figures, or has NaN there, is not in the front.

    >>> points = {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 2}, "c": {"x": 2, "y": 1}}
    >>> sorted(pareto_front(points, {"x": "min", "y": "max"}))
    ['a', 'b']
    """
    costs = {}
    for key, values in points.items():
        figures = [values.get(name, math.nan) for name in directions]
        if not any(math.isnan(figure) for figure in figures):
            costs[key] = tuple(
                -figure if direction == "max" else figure
                for figure, direction in zip(figures, directions.values(), strict=True)
            )
    # A point sorts after all that dominate it, so comparing it with the front so far is enough.
    front: set[tuple[float, ...]] = set()
    for cost in sorted(set(costs.values())):
        if not any(all(a <= b for a, b in zip(other, cost, strict=True)) for other in front):
            front.add(cost)
    return frozenset(key for key, cost in costs.items() if cost in front)


def fits(measurement: Measurement, dense: Measurement, budget: Budget) -> list[str]:
    """Why a measurement breaks the budget, in words; empty where it fits.

    The drop of the metric is in its own units and paired with the dense parent's; latency is p50 at batch 1.
    """
    reasons = []
    name = measurement.metric.name
    if not math.isfinite(measurement.metric.value):
        reasons.append(f"{name} is not finite")
    elif budget.max_metric_drop is not None:
        drop = metric_drop(measurement, dense)
        if drop is None:
            reasons.append(f"the difference in {name} to the dense model was not measured")
        elif exceeds(drop, budget.max_metric_drop):
            reasons.append(drop_in_words(name, drop, budget.max_metric_drop))
    if budget.max_latency_ms is not None:
        latency = p50(measurement)
        if not math.isfinite(latency):
            reasons.append("the latency at batch 1 was not measured")
        elif exceeds(latency, budget.max_latency_ms):
            figures = format_apart(latency, budget.max_latency_ms, format_ms)
            reasons.append(f"batch 1 takes {figures[0]}, {figures[1]} allowed")
    if budget.max_bytes is not None and measurement.bytes > budget.max_bytes:
        figures = format_apart(measurement.bytes, budget.max_bytes, format_bytes)
        reasons.append(f"{figures[0]}, {figures[1]} allowed")
    return reasons


def select(
    artifacts: Sequence[Artifact],
    *,
    dense: str,
    budget: Budget,
    pick: Pick,
    metric_direction: Direction,
) -> Selection:
    """Chooses among the artifacts that fit the budget; the dense parent is always a candidate.

    Args:
        dense: name of the dense parent, one of `artifacts`.
        pick: smallest (bytes; a pack's are the archive's), fastest (p50 at batch 1; never slower than its own parent
            or the dense one, and never a pack), or most_accurate. Ties go to the better metric, then to fewer
            bytes, then to the name.

    Where nothing fits the budget, or `pick` rules out what does, the dense parent is selected, with a
    warning. An artifact whose parent is not among them is compared with the dense one. Raises KeyError where
    `dense` is not among the artifacts, ValueError where two share a name.
    """
    by_name = {artifact.name: artifact for artifact in sorted(artifacts, key=lambda artifact: artifact.name)}
    if len(by_name) != len(artifacts):
        raise ValueError(f"two artifacts share a name: {sorted(artifact.name for artifact in artifacts)}")
    root = by_name[dense]
    reasons = {name: fits(artifact.measurement, root.measurement, budget) for name, artifact in by_name.items()}
    front = pareto_front(
        {name: _figures(artifact.measurement) for name, artifact in by_name.items()},
        {"metric": metric_direction, "bytes": "min", "latency_ms": "min"},
    )

    fitting = [artifact for name, artifact in by_name.items() if not reasons[name]]
    candidates = fitting
    if pick == "fastest":
        candidates = [artifact for artifact in fitting if _keeps_pace(artifact, by_name, root)]
    chosen = min(
        candidates,
        key=lambda artifact: (*_rank(_figures(artifact.measurement), pick, metric_direction), artifact.name),
        default=root,
    )
    judged = tuple(
        artifact.model_copy(
            update={
                "pareto": artifact.name in front,
                "fits_budget": not reasons[artifact.name],
                "verdict": verdict(artifact, by_name, root, budget, reasons[artifact.name]),
            }
        )
        for artifact in artifacts
    )
    warnings = _warnings(chosen, root, {artifact.name for artifact in fitting}, bool(candidates), reasons)
    if unclear := not_resolvable(chosen.measurement, budget):
        warnings.append(f"whether {chosen.name} keeps to the budget is {unclear}")
    return Selection(selected=chosen.name, artifacts=judged, warnings=tuple(warnings))


def best_trials(trials: Sequence[Trial], *, direction: Direction, count: int) -> tuple[Trial, ...]:
    """The best completed trials by their metric, best first; ties go to the lower number."""
    measured = [trial for trial in trials if trial.state == "completed" and _is_number(trial.values.get("metric"))]
    sign = -1 if direction == "max" else 1
    return tuple(sorted(measured, key=lambda trial: (sign * trial.values["metric"], trial.number))[:count])


def best_compression(trials: Sequence[Trial], *, pick: Pick, metric_direction: Direction) -> Trial | None:
    """The completed trial that wins by `pick` among those within the budget (`violation` 0 or less).

    Where none is within, the one with the least violation; None without a completed trial.
    """
    completed = [trial for trial in trials if trial.state == "completed" and not math.isnan(trial.violation)]

    def rank(trial: Trial) -> tuple[float, float, float, float, int]:
        return (
            max(0.0, trial.violation),
            *_rank(trial.values, pick, metric_direction),
            trial.number,
        )

    return min(completed, key=rank, default=None)


def trial_front(trials: Sequence[Trial], directions: Mapping[str, Direction]) -> tuple[int, ...]:
    """Numbers of the completed trials on the Pareto front over the objectives, ascending."""
    points = {trial.number: trial.values for trial in trials if trial.state == "completed"}
    return tuple(sorted(pareto_front(points, directions)))


def _figures(measurement: Measurement) -> dict[str, float]:
    """The three objectives of a measurement, under the names that trials use."""
    return {
        "metric": measurement.metric.value,
        "bytes": float(measurement.bytes),
        "latency_ms": p50(measurement),
    }


def _rank(values: Mapping[str, float], pick: Pick, metric_direction: Direction) -> tuple[float, float, float]:
    """Smaller is better: what `pick` looks at, then the metric, then bytes; missing or NaN is last."""
    metric = _last_if_nan((-1 if metric_direction == "max" else 1) * values.get("metric", math.nan))
    size = _last_if_nan(values.get("bytes", math.nan))
    latency = _last_if_nan(values.get("latency_ms", math.nan))
    return {"smallest": size, "fastest": latency, "most_accurate": metric}[pick], metric, size


def _warnings(
    chosen: Artifact,
    dense: Artifact,
    fitting: set[str],
    any_candidate: bool,
    reasons: Mapping[str, list[str]],
) -> list[str]:
    """What the user should know; `reasons` holds an entry for every artifact, empty where it fits."""
    if not fitting:
        why = ", ".join(reasons[dense.name])
        if len(reasons) == 1:
            return [f"the dense model does not fit the budget: {why}"]
        return [f"nothing fits the budget, so the dense model is kept, which does not either: {why}"]
    if not any_candidate:
        return ["all that fits the budget is slower than its parent or the dense model, so that one is kept"]
    if len(reasons) > 1 and fitting == {dense.name}:
        return ["nothing but the dense model fits the budget"]
    if len(reasons) > 1 and chosen.name == dense.name:
        return ["no compressed artifact beats the dense model at what was to be picked"]
    return []


def _keeps_pace(artifact: Artifact, by_name: Mapping[str, Artifact], dense: Artifact) -> bool:
    """Whether it is at batch 1 no slower than its parent and than the dense model. A pack never is said to be."""
    if artifact.name == dense.name:
        return True
    if artifact.stage == "pack":
        return False  # it serves as the float model that it restores, so what it would win by is noise
    parent = parent_of(artifact, by_name, dense)
    ours = p50(artifact.measurement)
    return ours <= p50(parent.measurement) and ours <= p50(dense.measurement)


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
