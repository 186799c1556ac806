"""How the selected artifact does on validation: class by class, or the figures of a regression or a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from orchestrator.charts.matrix import heat_map
from orchestrator.units import format_metric
from orchestrator.views.common import Subject, number

MAX_CLASS_ROWS = 40
MAX_MATRIX_CLASSES = 120
MAX_CONFUSIONS = 8
_REGRESSION_NAMES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²"}
_LANGUAGE_NAMES = {"perplexity": "Perplexity", "bits_per_token": "Bits a token", "accuracy": "Next token right"}


@dataclass(frozen=True)
class ClassRow:
    name: str
    support: str
    shares: tuple[float | None, float | None, float | None]
    """Precision, recall and F1, 0 to 1."""
    f1_change: float | None
    """In points, against the dense model."""


@dataclass(frozen=True)
class ClassesView:
    rows: tuple[ClassRow, ...]
    has_change: bool
    note: str
    matrix: Markup | None
    confusions: tuple[tuple[str, str, str, str], ...]
    """The most frequent errors: true, predicted, how many, share of the true class."""


@dataclass(frozen=True)
class FiguresView:
    title: str
    lead: str
    figures: tuple[tuple[str, str, str], ...]
    """Name, the selected artifact's, the dense model's (empty where they are one)."""


def details_view(subject: Subject) -> ClassesView | FiguresView | None:
    """None where the selected artifact (or, without one, the dense model) has no details."""
    artifact = subject.selected or subject.dense
    if artifact is None:
        return None
    details = artifact.measurement.details
    is_dense = subject.dense is None or artifact.name == subject.dense.name
    parent = {} if is_dense or subject.dense is None else subject.dense.measurement.details
    if isinstance(details.get("classes"), list) and details["classes"]:
        return _classes(details, parent)
    lead = "The selected artifact on validation, through its exported file"
    if "perplexity" in details:
        tokens, samples = (number(details.get(name)) or 0.0 for name in ("tokens", "samples"))
        lead += f": {tokens:,.0f} tokens to predict, in {samples:,.0f} samples."
        return FiguresView("Language model", lead, _figures(details, parent, _LANGUAGE_NAMES))
    figures = _figures(details, parent, _REGRESSION_NAMES)
    return FiguresView("Regression", f"{lead}, in the target's own units.", figures) if figures else None


def _figures(
    details: dict[str, Any], parent: dict[str, Any], names: dict[str, str]
) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (
            title,
            format_metric(name, value),
            format_metric(name, before) if (before := number(parent.get(name))) is not None else "",
        )
        for name, title in names.items()
        if (value := number(details.get(name))) is not None
    )


def _classes(details: dict[str, Any], parent: dict[str, Any]) -> ClassesView:
    names = [str(name) for name in details["classes"]]
    columns = [_column(details, key, len(names)) for key in ("precision", "recall", "f1")]
    before = _column(parent, "f1", len(names))
    confusion = _square(details.get("confusion"), len(names))
    rows = []
    for index, name in enumerate(names):
        f1, old = columns[2][index], before[index]
        rows.append(
            ClassRow(
                name=name,
                support=f"{sum(confusion[index]):.0f}" if confusion else "",
                shares=(columns[0][index], columns[1][index], f1),
                f1_change=None if f1 is None or old is None else 100 * (f1 - old),
            )
        )
    note = ""
    if len(rows) > MAX_CLASS_ROWS:
        note = f"The {MAX_CLASS_ROWS} classes with the lowest F1, of {len(rows)}; report.json has them all."
        rows = sorted(rows, key=lambda row: -1.0 if row.shares[2] is None else row.shares[2])[:MAX_CLASS_ROWS]
    drawable = confusion is not None and len(names) <= MAX_MATRIX_CLASSES
    return ClassesView(
        rows=tuple(rows),
        has_change=any(row.f1_change is not None for row in rows),
        note=note,
        matrix=heat_map(names, confusion, label="confusion matrix", width=560.0 if len(names) <= 12 else 760.0)
        if drawable and confusion
        else None,
        confusions=tuple(_confusions(names, confusion or [])),
    )


def _confusions(names: Sequence[str], confusion: Sequence[Sequence[float]]) -> list[tuple[str, str, str, str]]:
    errors = [
        (count, row, column)
        for row, values in enumerate(confusion)
        for column, count in enumerate(values)
        if count > 0 and row != column
    ]
    errors.sort(key=lambda error: (-error[0], error[1], error[2]))
    return [
        (names[row], names[column], f"{count:.0f}", f"{100 * count / sum(confusion[row]):.1f} %")
        for count, row, column in errors[:MAX_CONFUSIONS]
    ]


def _column(details: dict[str, Any], key: str, size: int) -> list[float | None]:
    values = details.get(key)
    read = [number(value) for value in values] if isinstance(values, list) else []
    return read if len(read) == size else [None] * size


def _square(values: Any, size: int) -> list[list[float]] | None:
    if not isinstance(values, list) or len(values) != size:
        return None
    rows = [[number(count) or 0.0 for count in row] for row in values if isinstance(row, list)]
    return rows if all(len(row) == size for row in rows) and len(rows) == size else None
