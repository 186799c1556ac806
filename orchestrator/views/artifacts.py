"""The artifacts: their lineage, their table, and the trade-offs between them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from jobs.records import Artifact, Interval, Measurement
from orchestrator.charts.plots import HALF, Mark, Rule, scatter_chart
from orchestrator.charts.scales import axis_name, by_spread, compact_label
from orchestrator.charts.tree import Node, tree
from orchestrator.selection import pareto_front
from orchestrator.units import (
    format_amount,
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_ms,
    format_ratio,
    significant,
)
from orchestrator.verdict import p50
from orchestrator.views.common import MODEL_CARD_NAME, STAGE_SHAPES, STAGE_WORDS, Subject, change_interval, metric_scale

MAX_ARTIFACTS = 60


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small below it, and a bar as a share of the column's largest."""

    main: str
    small: str = ""
    share: float | None = None


@dataclass(frozen=True)
class ArtifactRow:
    name: str
    stage: str
    selected: bool
    cells: tuple[Cell, ...]
    pareto: bool
    fits: bool
    verdict: str
    card: str
    """Where its model card lies, from the page's folder."""


@dataclass(frozen=True)
class ArtifactsView:
    """`lineage` is None for a single artifact, `plots` are the Pareto plots with their names."""

    lineage: Markup | None
    columns: tuple[str, ...]
    rows: tuple[ArtifactRow, ...]
    left_out: int
    plots: tuple[tuple[str, Markup], ...]


def artifacts_view(subject: Subject, budget: dict[str, Any]) -> ArtifactsView:
    shown = subject.artifacts[:MAX_ARTIFACTS]
    return ArtifactsView(
        lineage=_lineage(subject) if len(shown) > 1 else None,
        columns=(
            f"{subject.metric}, validation",
            "against dense",
            "test",
            "file",
            "parameters",
            "MACs",
            "batch 1",
            "batch 64",
            "parity",
        ),
        rows=tuple(_row(artifact, subject) for artifact in shown),
        left_out=len(subject.artifacts) - len(shown),
        plots=tuple(_plots(subject, budget)) if len(shown) > 1 else (),
    )


def _row(artifact: Artifact, subject: Subject) -> ArtifactRow:
    m = artifact.measurement
    largest = max(other.measurement.bytes for other in subject.artifacts)
    name = m.metric.name
    delta = m.metric_delta
    sparse = f"{format_count(m.nonzero_params)} not zero" if m.nonzero_params != m.params else ""
    cells = (
        _interval_cell(m.metric),
        Cell("")
        if delta is None
        else Cell(
            format_change(name, delta.value),
            change_interval(name, delta.ci95),
        ),
        Cell("") if artifact.test_metric is None else _interval_cell(artifact.test_metric),
        Cell(format_bytes(m.bytes), f"{format_bytes(m.bytes_zstd)} zstd", m.bytes / largest if largest else None),
        Cell(format_count(m.params), sparse),
        Cell(format_count(m.macs)),
        _latency_cell(m, "batch_1", subject),
        _latency_cell(m, "batch_64", subject),
        Cell(significant(m.parity_max_abs_diff, 2)),
    )
    return ArtifactRow(
        name=artifact.name,
        stage=STAGE_WORDS[artifact.stage],
        selected=subject.selected is not None and artifact.name == subject.selected.name,
        cells=cells,
        pareto=artifact.pareto,
        fits=artifact.fits_budget,
        verdict=artifact.verdict,
        card=f"artifacts/{quote(artifact.name, safe='')}/{MODEL_CARD_NAME}",
    )


def _interval_cell(interval: Interval) -> Cell:
    low, high = (format_metric(interval.name, end).removesuffix(" %") for end in interval.ci95)
    return Cell(format_metric(interval.name, interval.value), f"{low} … {high}")


def _latency_cell(measurement: Measurement, key: str, subject: Subject) -> Cell:
    latency = measurement.latency_ms.get(key)
    if latency is None:
        return Cell("")
    largest = max(
        other.measurement.latency_ms[key].p50 for other in subject.artifacts if key in other.measurement.latency_ms
    )
    share = latency.p50 / largest if largest > 0 else None
    tail = f", p99 {format_ms(latency.p99)}" if latency.p99 is not None else ""
    return Cell(format_ms(latency.p50), f"p90 {format_ms(latency.p90)}{tail}, n = {latency.n}", share)


def _lineage(subject: Subject) -> Markup:
    by_name = {artifact.name: artifact for artifact in subject.artifacts}
    nodes = []
    for artifact in subject.artifacts[:MAX_ARTIFACTS]:
        m = artifact.measurement
        parent = by_name.get(artifact.parent) if artifact.parent is not None else None
        latency = format_ms(p50(m)) if "batch_1" in m.latency_ms else "no latency"
        nodes.append(
            Node(
                name=artifact.name,
                parent=artifact.parent,
                lines=(f"{format_bytes(m.bytes)} · {latency} · {format_metric(m.metric.name, m.metric.value)}",),
                edge=_edge(m, parent.measurement, artifact.stage) if parent is not None else (),
                class_=f"fill-{artifact.stage}",
                tip=f"{artifact.name}\n{artifact.verdict}",
                selected=subject.selected is not None and artifact.name == subject.selected.name,
            )
        )
    return tree(nodes, label="lineage of the artifacts, from the dense model on")


def _edge(ours: Measurement, parent: Measurement, stage: str) -> tuple[str, ...]:
    """What one step changed against its own parent: size, speed, metric."""
    lines = []
    for before, after, better, worse in (
        (float(parent.bytes), float(ours.bytes), "smaller", "bigger"),
        (p50(parent), p50(ours), "faster", "slower"),
    ):
        if before > 0 and after > 0 and not (stage == "pack" and better == "faster"):
            ratio = before / after
            lines.append(f"{format_ratio(max(ratio, 1 / ratio))} {better if ratio >= 1 else worse}")
    before_delta = parent.metric_delta.value if parent.metric_delta is not None else 0.0
    if ours.metric_delta is not None:
        lines.append(format_change(ours.metric.name, ours.metric_delta.value - before_delta))
    return tuple(lines)


def _plots(subject: Subject, budget: dict[str, Any]) -> list[tuple[str, Markup]]:
    drop, dense = budget.get("max_metric_drop"), subject.dense
    rules = []
    if drop is not None and dense is not None:
        floor = dense.measurement.metric.value + (-drop if subject.direction == "max" else drop)
        rules.append(Rule(floor, f"budget: {format_amount(subject.metric, drop)}", "y"))
    plots = []
    for title, x_name, figure, form, limit in (
        ("Metric against size", "bytes of the file", lambda m: float(m.bytes), format_bytes, budget.get("max_bytes")),
        ("Metric against latency", "p50 at batch 1", p50, format_ms, budget.get("max_latency_ms")),
    ):
        upright = [] if limit is None else [Rule(float(limit), f"budget: {compact_label(form)(limit)}", "x")]
        drawn = _plot(subject, x_name, figure, form, [*rules, *upright])
        if drawn is not None:
            plots.append((title, drawn))
    return plots


def _plot(
    subject: Subject,
    x_name: str,
    figure: Callable[[Measurement], float],
    form: Callable[[float], str],
    rules: list[Rule],
) -> Markup | None:
    """None where fewer than two artifacts have both figures."""
    points = {
        artifact.name: {"x": figure(artifact.measurement), "y": artifact.measurement.metric.value}
        for artifact in subject.artifacts[:MAX_ARTIFACTS]
    }
    points = {name: p for name, p in points.items() if all(abs(v) < float("inf") for v in p.values())}
    if len(points) < 2:
        return None
    front = pareto_front(points, {"x": "min", "y": subject.direction})
    marks = [
        _mark(artifact, points[artifact.name], subject, form)
        for artifact in subject.artifacts
        if artifact.name in points
    ]
    x_values = [p["x"] for p in points.values()] + [rule.value for rule in rules if rule.across == "x"]
    y_values = [end for mark in marks for end in (mark.y, *(mark.y_error or ()))]
    y_values += [rule.value for rule in rules if rule.across == "y"]
    x = by_spread(x_values, *HALF.x_range, label=compact_label(form), pad=0.1)
    y = metric_scale(subject.metric, y_values, *HALF.y_range)
    return scatter_chart(
        HALF,
        x,
        y,
        marks,
        label=f"{subject.metric} against {x_name}, one mark an artifact",
        x_name=f"{axis_name(x_name, x)} (left is better)",
        y_name=axis_name(f"{subject.metric}, validation, with its 95 % interval", y),
        front=[(points[name]["x"], points[name]["y"]) for name in front],
        rules=rules,
    )


def _mark(artifact: Artifact, point: dict[str, float], subject: Subject, form: Callable[[float], str]) -> Mark:
    m = artifact.measurement
    is_selected = subject.selected is not None and artifact.name == subject.selected.name
    return Mark(
        x=point["x"],
        y=point["y"],
        class_=f"fill-{artifact.stage}{'' if artifact.fits_budget else ' misfit'}",
        tip=f"{artifact.name}\n{format_metric(m.metric.name, m.metric.value)} · {form(point['x'])}\n{artifact.verdict}",
        shape=STAGE_SHAPES[artifact.stage],
        size=5.5,
        label=artifact.name,
        ring=is_selected,
        y_error=m.metric.ci95,
    )
