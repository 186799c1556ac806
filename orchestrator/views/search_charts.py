"""Drawings of one study: history, curves, trade-offs, parallel coordinates."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from jobs.records import Trial
from orchestrator.charts.bars import Bars, bar_chart
from orchestrator.charts.parallel import BOTTOM, TOP, Dimension, Strand, parallel_coordinates
from orchestrator.charts.plots import HALF, HALF_NAMED, Area, Mark, Series, line_chart, scatter_chart
from orchestrator.charts.scales import Category, Linear, Log, Scale, axis_name, by_spread, compact_label, linear
from orchestrator.selection import pareto_front
from orchestrator.views.common import compressed, metric_scale, number, show
from orchestrator.views.study import OBJECTIVE_FORMS, OBJECTIVE_NAMES, Study, reached, short_key

MAX_STRANDS = 400
MAX_CURVES = 200
TOP_CURVES = 5
"""So many of the best learning curves are drawn strongly, with names."""
MAX_MARKS = 1000
MANY_MARKS = 250
"""Beyond this the history's marks are smaller."""
NUM_SHADES = 6


def history(study: Study) -> Markup | None:
    shown = compressed(sorted(study.trials, key=lambda trial: trial.number), MAX_MARKS)
    known = [value for trial in shown if (value := reached(trial)) is not None]
    if not known:
        return None
    y = metric_scale(study.subject.metric, known, *HALF.y_range)
    x = linear([float(trial.number) for trial in shown], *HALF.x_range, whole=True, pad=0.03)
    small = len(shown) > MANY_MARKS
    marks, stairs = [], []
    record: float | None = None
    for trial in shown:
        value = reached(trial)
        tip = study.tip(trial)
        key = study.key(trial)
        if trial.state == "failed" or value is None:
            marks.append(Mark(trial.number, y.low, "stroke-failed", tip, shape="cross", size=3.5, key=key))
        elif trial.state == "pruned":
            marks.append(
                Mark(trial.number, value, "fill-pruned", tip, shape="triangle", size=2.6 if small else 3.6, key=key)
            )
        else:
            if record is None or (value > record if study.subject.direction == "max" else value < record):
                record = value
                stairs.append((float(trial.number), value))
            marks.append(
                Mark(
                    trial.number,
                    value,
                    "fill-completed",
                    tip,
                    size=2.6 if small else 4.0,
                    ring=trial.number == study.best,
                    label=f"trial {trial.number}" if trial.number == study.best else "",
                    key=key,
                )
            )
    if stairs:
        stairs.append((float(shown[-1].number), stairs[-1][1]))
    return line_chart(
        HALF,
        x,
        y,
        [Series(stairs, "best-line", steps=True)] if stairs else [],
        label=f"{study.subject.metric} of each trial, with the best so far",
        x_name="trial",
        y_name=axis_name(f"{study.subject.metric}, validation", y),
        marks=marks,
    )


def curves(study: Study) -> Markup | None:
    """The metric by epoch, a line a trial, the best ones named; what the scheduler stopped ends early."""
    with_curve = [trial for trial in study.trials if len(trial.curve) >= 2]
    if not with_curve:
        return None
    top = {trial.number for trial in study.ranked[:TOP_CURVES]} | {study.best}
    shown = compressed([trial for trial in with_curve if trial.number not in top], MAX_CURVES)
    shown += [trial for trial in with_curve if trial.number in top]
    series, names = [], []
    for trial in sorted(shown, key=lambda trial: (trial.number == study.best, trial.number in top)):
        points = [(index + 1.0, value) for index, value in enumerate(trial.curve) if math.isfinite(value)]
        if not points:
            continue
        best = trial.number == study.best
        class_ = "strand-best" if best else "strand-top" if trial.number in top else f"strand-{trial.state}"
        drawn = compressed(points, 100)
        series.append(Series(drawn, class_, key=study.key(trial)))
        if trial.number in top:
            fill = "fill-front" if best else "fill-completed"
            tip = study.tip(trial)
            name, key = f"trial {trial.number}", study.key(trial)
            names.append(Mark(*drawn[-1], fill, tip, size=3.0, label=name, ring=best, key=key))
    if not series:
        return None
    values = [y for one in series for _, y in one.points]
    epochs = [x for one in series for x, _ in one.points]
    y = metric_scale(study.subject.metric, values, *HALF_NAMED.y_range)
    return line_chart(
        HALF_NAMED,
        linear(epochs, *HALF_NAMED.x_range, whole=True, pad=0.03),
        y,
        series,
        label=f"validation {study.subject.metric} by epoch, one line a trial",
        x_name="epoch",
        y_name=axis_name(f"{study.subject.metric}, validation", y),
        ends=names,
    )


def trade_off(study: Study, across: str, up: str = "metric") -> Markup | None:
    """Two objectives against one another, with the Pareto front of the two."""
    done = [
        trial
        for trial in study.trials
        if trial.state == "completed" and all(number(trial.values.get(name)) is not None for name in (across, up))
    ]
    if len(done) < 2:
        return None
    form = OBJECTIVE_FORMS[across]
    direction = study.subject.direction if up == "metric" else "min"
    front = pareto_front({trial.number: trial.values for trial in done}, {across: "min", up: direction})
    marks = [
        Mark(
            trial.values[across],
            trial.values[up],
            f"fill-completed{' misfit' if trial.violation > 0 else ''}",
            study.tip(trial),
            size=4.0,
            ring=trial.number == study.best,
            label=f"trial {trial.number}" if trial.number == study.best else "",
            key=study.key(trial),
        )
        for trial in compressed(done, MAX_MARKS)
    ]
    x = by_spread([trial.values[across] for trial in done], *HALF.x_range, label=compact_label(form))
    upward = [trial.values[up] for trial in done]
    if up == "metric":
        y = metric_scale(study.subject.metric, upward, *HALF.y_range)
        name = f"{study.subject.metric}, validation"
    else:
        y = by_spread(upward, *HALF.y_range, label=compact_label(OBJECTIVE_FORMS[up]))
        name = OBJECTIVE_NAMES[up]
    return scatter_chart(
        HALF,
        x,
        y,
        marks,
        label=f"{study.subject.metric if up == 'metric' else name} against {OBJECTIVE_NAMES[across]}, one mark a trial",
        x_name=axis_name(OBJECTIVE_NAMES[across], x),
        y_name=axis_name(name, y),
        front=[(trial.values[across], trial.values[up]) for trial in done if trial.number in front],
    )


def importance(study: Study) -> Markup | None:
    """How much of each objective's variance each key explains, the most important key first."""
    shares: dict[str, dict[str, float]] = study.importance.get("shares") or {}
    named = [name for name in study.objectives if shares.get(name)]
    keys = {key for name in named for key in shares[name]}
    if not keys:
        return None
    ranked = sorted(keys, key=lambda key: (-sum(shares[name].get(key, 0.0) for name in named), key))
    return bar_chart(
        [Bars(short_key(key), [shares[name].get(key, 0.0) for name in named], key) for key in ranked],
        [(objective_name(study, name), f"bar-{name}") for name in named],
        width=HALF.width,
        label="share of each objective's variance that each key explains",
        form=lambda share: f"{share:.0%}".replace("%", " %"),
    )


def objective_name(study: Study, name: str) -> str:
    return study.subject.metric if name == "metric" else OBJECTIVE_NAMES[name]


def coordinates(study: Study) -> Markup | None:
    """Completed trials shaded by their rank, pruned ones in grey below them, the best on top."""
    known = [value for trial in study.trials if (value := reached(trial)) is not None]
    if not study.keys or len(known) < 2:
        return None
    dimensions = [
        Dimension(
            short_key(key),
            _scale(study, key, BOTTOM, TOP),
            key,
        )
        for key in study.keys
    ]
    dimensions.append(
        Dimension(study.subject.metric, metric_scale(study.subject.metric, known, BOTTOM, TOP), study.subject.metric)
    )
    pruned = [trial for trial in study.trials if trial.state == "pruned" and reached(trial) is not None]
    strands = [_strand(study, trial, dimensions, "pruned") for trial in compressed(pruned, MAX_STRANDS // 4)]
    head = list(study.ranked[: MAX_STRANDS // 2])
    shown = [*head, *compressed(study.ranked[len(head) :], MAX_STRANDS // 4)]
    for rank, trial in reversed(list(enumerate(shown))):
        shade = f"shade-{NUM_SHADES - 1 - rank * NUM_SHADES // max(1, len(shown))}"
        strands.append(_strand(study, trial, dimensions, "best" if trial.number == study.best else shade))
    strands.sort(key=lambda strand: strand.class_ == "best")
    return parallel_coordinates(
        dimensions,
        strands,
        label=f"parameters and {study.subject.metric} of each trial, one line a trial",
        width=1110.0,
    )


def parameter_slice(study: Study, key: str, area: Area) -> Markup | None:
    """The metric over one parameter, one mark a completed or pruned trial; None with fewer than two."""
    scale = _scale(study, key, *area.x_range)
    marks = []
    for trial in compressed(study.trials, MAX_MARKS):
        x, y = _coordinate(trial, key, scale), reached(trial)
        if x is not None and y is not None and trial.state != "failed":
            done = trial.state == "completed"
            marks.append(
                Mark(
                    x,
                    y,
                    "fill-completed" if done else "fill-pruned",
                    study.tip(trial),
                    shape="circle" if done else "triangle",
                    size=3.5,
                    ring=trial.number == study.best,
                    key=study.key(trial),
                )
            )
    if len(marks) < 2:
        return None
    upright = metric_scale(study.subject.metric, [mark.y for mark in marks], *area.y_range)
    return scatter_chart(
        area,
        scale,
        upright,
        marks,
        label=f"{study.subject.metric} over {key}, one mark a trial",
        x_name=axis_name(short_key(key), scale),
        y_name=axis_name(f"{study.subject.metric}, validation", upright),
    )


def _scale(study: Study, key: str, start: float, end: float) -> Scale:
    """The scale that the space itself has: logarithmic, whole numbers, choices."""
    space = study.space.get(key)
    values = [trial.params[key] for trial in study.trials if key in trial.params]
    given = {k: v for k, v in space.items() if k not in ("step", "when") and v} if isinstance(space, dict) else {}
    kind, bounds = next(iter(given.items()), ("", None))
    numeric = [value for value in map(number, values) if value is not None]
    if kind == "choice" or len(numeric) < len(values) or not values:
        listed = bounds if kind == "choice" and bounds is not None else sorted(set(map(str, values)))
        return Category([show(value) for value in listed] or [""], start, end)
    if bounds is None:
        return linear(numeric, start, end)
    low, high = min(float(bounds[0]), *numeric), max(float(bounds[1]), *numeric)
    if kind in ("loguniform", "logint") and low > 0:
        return Log(low, high, start, end)
    return Linear(low, high, start, end, whole=kind == "int")


def _coordinate(trial: Trial, key: str, scale: Scale) -> float | None:
    """Where a trial lies on a parameter's scale, as a value of that scale."""
    value = trial.params.get(key)
    if not isinstance(scale, Category):
        return number(value)
    names = list(scale.names)
    return float(names.index(show(value))) if key in trial.params and show(value) in names else None


def _strand(study: Study, trial: Trial, dimensions: Sequence[Dimension], class_: str) -> Strand:
    values = [_coordinate(trial, key, dimension.scale) for key, dimension in zip(study.keys, dimensions, strict=False)]
    return Strand((*values, reached(trial)), class_, study.tip(trial), study.key(trial))
