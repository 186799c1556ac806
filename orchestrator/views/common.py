"""What the parts of the page share: the figures compared, safe reading of open-ended fields, scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jobs.records import Artifact, RunReport
from jobs.spec.job import HIGHER_IS_BETTER
from orchestrator.charts.scales import Linear, Log, by_spread, linear, power_label
from orchestrator.selection import Direction
from orchestrator.units import PERCENT_METRICS, format_change

Row = TypeVar("Row")

MODEL_CARD_NAME = "card.md"
"""Beside each artifact.json; the page links it."""
STAGE_WORDS = {
    "dense": "dense",
    "prune": "pruned",
    "low_rank": "low rank",
    "quantize": "quantized",
    "pack": "packed",
}
STAGE_SHAPES = {
    "dense": "circle",
    "prune": "diamond",
    "low_rank": "triangle",
    "quantize": "square",
    "pack": "wedge",
}


@dataclass(frozen=True)
class Subject:
    """Whom the page is about: the artifacts, and which of them are the dense one and the selected one."""

    artifacts: tuple[Artifact, ...]
    dense: Artifact | None
    selected: Artifact | None
    metric: str

    @property
    def direction(self) -> Direction:
        return "max" if self.metric in HIGHER_IS_BETTER else "min"


def subject_of(report: RunReport) -> Subject:
    """A failed run may have no artifacts, or none selected."""
    artifacts = report.artifacts
    dense = next((artifact for artifact in artifacts if artifact.stage == "dense"), None)
    selected = next((artifact for artifact in artifacts if artifact.name == report.selected), None)
    measured = selected or dense
    metric = measured.measurement.metric.name if measured else str(dig(report.spec, "metric", "metric"))
    return Subject(artifacts, dense, selected, metric)


def dig(document: Any, path: str, default: Any = None) -> Any:
    """What stands at a dotted path of nested mappings; `default` where there is nothing."""
    for key in path.split("."):
        if not isinstance(document, dict) or document.get(key) is None:
            return default
        document = document[key]
    return document


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that an open-ended field may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def show(value: Any) -> str:
    """A value of the spec or of a trial, short."""
    if isinstance(value, float):
        return power_label(value) if math.isfinite(value) else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value)
    return str(value)


def metric_scale(metric: str, values: Sequence[float], start: float, end: float) -> Linear | Log:
    """Perplexity falls by orders of magnitude, from the size of the vocabulary on."""
    if metric == "perplexity":
        return by_spread(values, start, end)
    return linear(values, start, end, percent=metric in PERCENT_METRICS)


def change_interval(metric: str, ci95: tuple[float, float]) -> str:
    """The interval of a Delta as changes of the metric's own value, in ascending order: `−0.6 … +0.2`."""
    ends = sorted(ci95, reverse=metric not in HIGHER_IS_BETTER)
    return " … ".join(format_change(metric, end, unit=False) for end in ends)


def compressed(rows: Sequence[Row], most: int) -> list[Row]:
    """At most about `most` rows, evenly taken, with the first and the last."""
    stride = max(1, math.ceil(len(rows) / most))
    kept = list(rows[::stride])
    if rows and kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return kept
