"""Learning curves: for each training or recovery its losses, its metric and its rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from orchestrator.charts.plots import THIRD, Mark, Series, line_chart
from orchestrator.charts.scales import Linear, axis_name, compact_label, linear, power_label
from orchestrator.units import format_metric, significant
from orchestrator.views.common import Subject, compressed, metric_scale, number

MAX_TRAININGS = 16
MAX_POINTS = 300
_MAX_DOTS = 30


@dataclass(frozen=True)
class Training:
    name: str
    charts: tuple[Markup, ...]
    note: str


@dataclass(frozen=True)
class TrainingView:
    trainings: tuple[Training, ...]
    left_out: int


@dataclass(frozen=True)
class _Row:
    x: float
    split: str
    loss: float | None
    metric: float | None
    lr: float | None
    when: str


def training_view(curves: dict[str, list[dict[str, Any]]], subject: Subject) -> TrainingView:
    named = [(name, rows) for name, rows in curves.items() if rows]
    drawn = [_training(name, rows, subject) for name, rows in named[:MAX_TRAININGS]]
    return TrainingView(
        trainings=tuple(training for training in drawn if training.charts),
        left_out=max(0, len(named) - MAX_TRAININGS),
    )


def _training(name: str, rows: Sequence[dict[str, Any]], subject: Subject) -> Training:
    unit, read = _read(rows)
    charts = [chart for chart in (_losses(read, unit), _metric(read, unit, subject), _rate(read, unit)) if chart]
    measured = [row for row in read if row.metric is not None and row.split == "validation"]
    note = ""
    if measured:
        best = _best(measured, subject)
        note = f"best {subject.metric} {format_metric(subject.metric, best.metric or 0.0)} at {best.when}"
    return Training(name=name, charts=tuple(charts), note=note)


def _read(rows: Sequence[dict[str, Any]]) -> tuple[str, list[_Row]]:
    """The rows over epochs where a split has one row an epoch, else over steps."""
    epochs = [(row.get("split"), number(row.get("epoch"))) for row in rows]
    by_epoch = all(epoch is not None for _, epoch in epochs) and len(set(epochs)) == len(epochs)
    unit = "epoch" if by_epoch else "step"
    read = []
    for row in rows:
        x = number(row.get(unit))
        if x is not None:
            read.append(
                _Row(
                    x=x,
                    split=str(row.get("split")),
                    loss=number(row.get("loss")),
                    metric=number(row.get("metric")),
                    lr=number(row.get("lr")),
                    when=f"{unit} {round(x, 2):g}",
                )
            )
    return unit, sorted(read, key=lambda row: row.x)


def _losses(rows: Sequence[_Row], unit: str) -> Markup | None:
    series = []
    for split, class_ in (("train", "stroke-train"), ("validation", "stroke-validation")):
        points = compressed([row for row in rows if row.split == split and row.loss is not None], MAX_POINTS)
        if points:
            series.append(
                Series(
                    points=[(row.x, row.loss or 0.0) for row in points],
                    class_=class_,
                    tips=[f"{row.when}\n{split} loss {significant(row.loss or 0.0, 4)}" for row in points],
                    dots=len(points) <= _MAX_DOTS,
                )
            )
    if not series:
        return None
    values = [y for one in series for _, y in one.points]
    x = _time(series, unit)
    return line_chart(
        THIRD,
        x,
        linear(values, *THIRD.y_range, label=compact_label(power_label), num_ticks=4),
        series,
        label="training and validation loss",
        x_name=unit,
        y_name="loss",
    )


def _metric(rows: Sequence[_Row], unit: str, subject: Subject) -> Markup | None:
    measured = [row for row in rows if row.metric is not None and row.split == "validation"]
    if not measured:
        return None
    points = compressed(measured, MAX_POINTS)
    series = Series(
        points=[(row.x, row.metric or 0.0) for row in points],
        class_="stroke-validation",
        tips=[f"{row.when}\n{format_metric(subject.metric, row.metric or 0.0)}" for row in points],
        dots=len(points) <= _MAX_DOTS,
    )
    best = _best(measured, subject)
    shown = format_metric(subject.metric, best.metric or 0.0)
    mark = Mark(best.x, best.metric or 0.0, "fill-best", f"best: {shown} at {best.when}", label=shown)
    y = metric_scale(subject.metric, [y for _, y in series.points] + [mark.y], *THIRD.y_range)
    return line_chart(
        THIRD,
        _time([series], unit),
        y,
        [series],
        label=f"validation {subject.metric}",
        x_name=unit,
        y_name=axis_name(f"{subject.metric}, validation", y),
        marks=[mark],
    )


def _rate(rows: Sequence[_Row], unit: str) -> Markup | None:
    points = compressed([row for row in rows if row.split == "train" and row.lr is not None], MAX_POINTS)
    if len(points) < 2:
        return None
    series = Series(
        points=[(row.x, row.lr or 0.0) for row in points],
        class_="stroke-rate",
        tips=[f"{row.when}\nlearning rate {significant(row.lr or 0.0)}" for row in points],
        dots=len(points) <= _MAX_DOTS,
    )
    values = [y for _, y in series.points]
    return line_chart(
        THIRD,
        _time([series], unit),
        linear([0.0, *values], *THIRD.y_range, num_ticks=4, pad=0.03),
        [series],
        label="learning rate",
        x_name=unit,
        y_name="learning rate",
    )


def _time(series: Sequence[Series], unit: str) -> Linear:
    values = [x for one in series for x, _ in one.points]
    return linear(values, *THIRD.x_range, whole=True, pad=0.03, label=lambda value: f"{value:,.0f}")


def _best(measured: Sequence[_Row], subject: Subject) -> _Row:
    sign = -1 if subject.direction == "max" else 1
    return min(measured, key=lambda row: (sign * (row.metric or 0.0), row.x))
