"""The search: how it went, which values went with which results, and the trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jobs.records import Trial
from orchestrator.charts.plots import HALF, THIRD
from orchestrator.units import format_metric, format_seconds
from orchestrator.views.common import Subject, dig, number, show
from orchestrator.views.search_charts import (
    MAX_STRANDS,
    coordinates,
    curves,
    history,
    importance,
    objective_name,
    parameter_slice,
    trade_off,
)
from orchestrator.views.study import OBJECTIVE_FORMS, OBJECTIVE_NAMES, Study, reached, short_key, studies

MAX_TABLE_ROWS = 100
_STATES = ("completed", "pruned", "failed")


@dataclass(frozen=True)
class TrialRow:
    number: int
    key: str
    state: str
    best: bool
    pareto: bool
    fits: bool
    values: tuple[tuple[str, float | None], ...]
    """Text and sort key, in the order of the columns."""
    cause: str


@dataclass(frozen=True)
class Phase:
    title: str
    counts: str
    charts: tuple[tuple[str, Markup], ...]
    """Half the page's width each."""
    trades: bool
    """Whether some charts show objectives against one another, with a front and a budget."""
    importance: Markup | None
    importance_legend: tuple[tuple[str, str], ...]
    """(class, name) of the objectives in it."""
    importance_note: str
    """On how many trials it rests and what it leaves out, or why there is none; empty in older reports."""
    coordinates: Markup | None
    slices: tuple[tuple[str, Markup], ...]
    """The metric over each parameter, a third of the page's width each."""
    columns: tuple[tuple[str, str], ...]
    """Short and whole names."""
    rows: tuple[TrialRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SearchView:
    settings: str
    phases: tuple[Phase, ...]


def search_view(search: dict[str, Any], pick: str, subject: Subject) -> SearchView:
    """`pick`: what the compression was to be chosen by, as in the spec."""
    settings = [str(search[key]) for key in ("mode", "algorithm", "scheduler") if search.get(key)]
    return SearchView(
        settings=", ".join(settings), phases=tuple(_phase(study) for study in studies(search, pick, subject))
    )


def _phase(study: Study) -> Phase:
    counts = {state: sum(trial.state == state for trial in study.trials) for state in _STATES}
    objectives = [name for name in OBJECTIVE_FORMS if any(name in trial.values for trial in study.trials)]
    charts = [("History", history(study)), ("Validation by epoch, the best ones named", curves(study))]
    charts += [(f"Metric against {OBJECTIVE_NAMES[name]}", trade_off(study, name)) for name in objectives]
    if len(objectives) > 1:
        up, across = sorted(objectives, key=list(OBJECTIVE_FORMS).index, reverse=True)
        charts.append((f"{OBJECTIVE_NAMES[up]} against {OBJECTIVE_NAMES[across]}", trade_off(study, across, up)))
    # One parameter needs no parallel coordinates: its slice says it all.
    single = len(study.keys) == 1
    area = HALF if single else THIRD
    slices = [(short_key(key), drawn) for key in study.keys if (drawn := parameter_slice(study, key, area))]
    if single:
        charts += slices
    placed = {trial.number for trial in study.ranked}
    rows = [*study.ranked, *(trial for trial in study.trials if trial.number not in placed)]
    notes = []
    if len(rows) > MAX_TABLE_ROWS:
        notes.append(f"The table shows the {MAX_TABLE_ROWS} best of {len(rows)} trials; report.json has them all.")
    if len(rows) > MAX_STRANDS:
        notes.append(
            f"The coordinates show about {MAX_STRANDS} of {len(rows)} trials: "
            "the best, and an even choice of the others."
        )
    names = (OBJECTIVE_NAMES[name] for name in objectives)
    return Phase(
        title=study.title,
        counts=", ".join(f"{count} {state}" for state, count in counts.items() if count),
        charts=tuple((title, chart) for title, chart in charts if chart is not None),
        trades=bool(objectives),
        importance=importance(study),
        importance_legend=tuple(
            (f"bar-{name}", objective_name(study, name))
            for name in study.objectives
            if dig(study.importance, f"shares.{name}")
        ),
        importance_note=_importance_note(study),
        coordinates=None if single else coordinates(study),
        slices=() if single else tuple(slices),
        columns=(
            *((name, name) for name in (study.subject.metric, *names)),
            *((short_key(key), key) for key in study.keys),
            ("epochs", "epochs"),
            ("time", "time"),
        ),
        rows=tuple(_row(study, trial, objectives) for trial in rows[:MAX_TABLE_ROWS]),
        notes=tuple(notes),
    )


def _importance_note(study: Study) -> str:
    found = study.importance
    if not found or found.get("note"):
        return str(found.get("note") or "")
    words = (
        f"By functional ANOVA over {found.get('trials')} completed trials: the share of the variance over the whole "
        "space that a key explains by itself. With few trials this is a hint."
    )
    if left_out := found.get("left_out"):
        words += f" Left out, since some trial lacks them or they had one value: {', '.join(map(str, left_out))}."
    return words


def _row(study: Study, trial: Trial, objectives: Sequence[str]) -> TrialRow:
    metric = reached(trial)
    values: list[tuple[str, float | None]] = [
        ("" if metric is None else format_metric(study.subject.metric, metric), metric)
    ]
    for name in objectives:
        value = trial.values.get(name)
        values.append(("" if value is None else OBJECTIVE_FORMS[name](value), value))
    values += [(show(trial.params.get(key, "")), number(trial.params.get(key))) for key in study.keys]
    values += [(str(trial.epochs or ""), float(trial.epochs)), (format_seconds(trial.seconds), trial.seconds)]
    return TrialRow(
        number=trial.number,
        key=study.key(trial),
        state=trial.state,
        best=trial.number == study.best,
        pareto=trial.number in study.front,
        fits=trial.violation <= 0,
        values=tuple(values),
        cause=trial.cause,
    )
