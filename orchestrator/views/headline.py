"""The top of the page: what was selected, what it gained, and the figures to know a run by."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jobs.records import Artifact, RunReport
from orchestrator.charts import svg
from orchestrator.units import (
    PERCENT_METRICS,
    format_amount,
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_ms,
    format_ratio,
    format_relative,
    format_seconds,
)
from orchestrator.verdict import p50, pace
from orchestrator.views.common import Subject, change_interval, dig, number, show


@dataclass(frozen=True)
class Tile:
    """One big figure. `share` is the bar below it, as a part of the dense model's; None: no bar."""

    name: str
    value: str
    note: str
    share: float | None = None
    drawing: Markup | None = None


@dataclass(frozen=True)
class Headline:
    notice: str
    """What to know before any figure; may be empty."""
    statement: Markup
    tiles: tuple[Tile, ...]
    facts: tuple[tuple[str, str], ...]


def headline(report: RunReport, subject: Subject) -> Headline:
    return Headline(
        notice=notice(report),
        statement=_statement(report, subject),
        tiles=_tiles(report, subject),
        facts=tuple(_facts(report)),
    )


def notice(report: RunReport) -> str:
    """What to know of the data before any figure; empty where there is nothing."""
    source = dig(report.spec, "data.source", {})
    named = " ".join(str(source.get(key, "")) for key in ("name", "path"))
    if "synthetic" not in named.lower():
        return ""
    return "SYNTHETIC data: a program made them up. No figure here says anything about real data."


def _statement(report: RunReport, subject: Subject) -> Markup:
    """One sentence: what was selected, what it gained, and whether it keeps to the budget."""
    selected, dense = subject.selected, subject.dense
    if selected is None:
        return Markup("{}").format(_without_a_choice(report, subject))
    name = Markup("<b>{}</b>").format(selected.name)
    budget = "within the budget" if selected.fits_budget else "outside the budget"
    if limits := _limits(report, subject.metric):
        budget += f" of {limits}"
    measured = selected.measurement
    if dense is None or selected.name == dense.name:
        figure = format_metric(subject.metric, measured.metric.value)
        others = "" if len(subject.artifacts) == 1 else ", kept as it is"
        tail = "" if len(subject.artifacts) == 1 and selected.fits_budget else f"; {budget}"
        return Markup("{}, the dense model{}: {} {} on validation{}.").format(
            name, others, subject.metric, figure, tail
        )
    packed = selected.stage == "pack"  # unpacked it is a float model as the dense one, whatever a clock says
    alike = not packed and pace(measured, dense.measurement, dense.name, "batch_1") == "as fast"
    parts = [
        Markup("<b>{}</b> {}").format(format_ratio(ratio if ratio >= 1 else 1 / ratio), better if ratio >= 1 else worse)
        for ratio, better, worse in (
            (_ratio(dense.measurement.bytes, measured.bytes), "smaller", "bigger"),
            (None if alike or packed else _ratio(p50(dense.measurement), p50(measured)), "faster", "slower"),
        )
        if ratio is not None
    ]
    sentence = Markup("{} was selected").format(name)
    if parts:
        sentence += Markup(": {} than the dense model").format(Markup(" and ").join(parts))
    if alike:
        sentence += " and about as fast" if parts else ": about as fast as the dense model"
    if (delta := measured.metric_delta) is not None:
        relative = format_relative(subject.metric, measured.metric.value, dense.measurement.metric.value)
        sentence += Markup(", {} <b>{}</b>{}").format(
            subject.metric, format_change(subject.metric, delta.value), relative
        )
    return sentence + Markup(", {}.").format(budget)


def _limits(report: RunReport, metric: str) -> str:
    """What the budget allows, all of it: `1 point, 3.00 MB and 2 ms`; empty if it allows everything."""
    drop, size, latency = (report.budget.get(f"max_{name}") for name in ("metric_drop", "bytes", "latency_ms"))
    limits = []
    if drop is not None:
        limits.append(format_amount(metric, float(drop)) + ("" if metric in PERCENT_METRICS else f" in {metric}"))
    if size is not None:
        limits.append(format_bytes(int(size)))
    if latency is not None:
        limits.append(format_ms(float(latency)))
    return " and ".join(filter(None, (", ".join(limits[:-1]), *limits[-1:])))


def _without_a_choice(report: RunReport, subject: Subject) -> str:
    if report.state == "failed":
        return "The run failed before an artifact was selected."
    if not report.search or report.artifacts:
        return "Nothing was selected."
    measured = [
        value
        for trial in report.search.get("trials") or []
        if (value := number(dig(trial, "values.metric"))) is not None
    ]
    if not measured:
        return "A search and no more: no trial completed."
    best = max(measured) if subject.direction == "max" else min(measured)
    return (
        f"A search and no more: {format_count(len(measured))} trial{'s' * (len(measured) != 1)} completed; "
        f"the best {subject.metric} on validation is {format_metric(subject.metric, best)}."
    )


def _tiles(report: RunReport, subject: Subject) -> tuple[Tile, ...]:
    selected = subject.selected or subject.dense
    if selected is None:
        return ()
    dense = subject.dense or selected
    measured, parent = selected.measurement, dense.measurement
    tiles = [
        _metric_tile(report, subject, selected),
        _tile("File", measured.bytes, parent.bytes, format_bytes, ("smaller", "bigger")),
        _latency_tile(selected, dense),
        _tile("Parameters", measured.params, parent.params, format_count, ("fewer", "more")),
        _tile("MACs a sample", measured.macs, parent.macs, format_count, ("fewer", "more")),
    ]
    return tuple(tile for tile in tiles if tile is not None)


def _latency_tile(selected: Artifact, dense: Artifact) -> Tile | None:
    measured, parent = selected.measurement, dense.measurement
    title, ours, theirs = "Latency, batch 1, p50", p50(measured), p50(parent)
    if selected.stage == "pack":
        title += ", unpacked"
    if measured is not parent and pace(measured, parent, dense.name, "batch_1") == "as fast":
        return Tile(title, format_ms(ours), f"about as fast as {format_ms(theirs)}", ours / theirs)
    return _tile(title, ours, theirs, format_ms, ("faster", "slower"))


def _tile(name: str, ours: float, theirs: float, form: Any, words: tuple[str, str]) -> Tile | None:
    if not ours > 0:
        return None
    ratio = _ratio(theirs, ours)
    if ratio is None or ours == theirs:
        return Tile(name, form(ours), "as the dense model", 1.0)
    factor = format_ratio(ratio if ratio >= 1 else 1 / ratio)
    return Tile(name, form(ours), f"{factor} {words[0] if ratio >= 1 else words[1]} than {form(theirs)}", ours / theirs)


def _metric_tile(report: RunReport, subject: Subject, selected: Artifact) -> Tile:
    metric, delta = selected.measurement.metric, selected.measurement.metric_delta
    value = format_metric(metric.name, metric.value)
    test = "" if selected.test_metric is None else f"\non test {format_metric(metric.name, selected.test_metric.value)}"
    if delta is None:
        low, high = (format_metric(metric.name, end) for end in metric.ci95)
        return Tile(f"{metric.name}, {metric.split}", value, f"95 %: {low} … {high}{test}")
    change, interval = format_change(metric.name, delta.value), change_interval(metric.name, delta.ci95)
    return Tile(
        f"{metric.name}, {metric.split}",
        value,
        f"{change} against dense\n95 %: {interval}{test}",
        drawing=_interval(delta.value, delta.ci95, report.budget.get("max_metric_drop")),
    )


def _interval(value: float, ci95: tuple[float, float], allowed: Any) -> Markup:
    """The paired difference to the dense model against zero and against the budget; better is right."""
    width, height = 200.0, 22.0
    marks = [value, *ci95, 0.0, *([] if allowed is None else [-float(allowed)])]
    low, high = min(marks), max(marks)
    air = (high - low) * 0.08 or 0.01

    def at(figure: float) -> float:
        return width * (figure - low + air) / (high - low + 2 * air)

    parts = [svg.tag("line", svg.title("as good as the dense model"), x1=at(0), x2=at(0), y1=2, y2=20, class_="zero")]
    if allowed is not None:
        edge = at(-float(allowed))
        parts.append(svg.tag("line", svg.title("the budget"), x1=edge, x2=edge, y1=2, y2=20, class_="budget"))
    parts.append(svg.line(at(ci95[0]), 11, at(ci95[1]), 11, "span"))
    parts.append(svg.tag("circle", cx=at(value), cy=11, r=4.5, class_="dot"))
    return svg.canvas(
        width, height, "paired difference to the dense model with its 95 % interval", *parts, class_="strip"
    )


def _facts(report: RunReport) -> list[tuple[str, str]]:
    """Whatever of these the report knows."""
    facts = []
    source = dig(report.spec, "data.source", {})
    if source:
        named = source.get("name") or source.get("path")
        facts.append(("Data", " ".join(str(part) for part in (source.get("kind"), named) if part)))
    counts = dig(report.dataset, "num_samples", {})
    if counts:
        shown = (f"{counts[split]:,} {split}" for split in ("train", "validation", "test") if split in counts)
        facts.append(("Samples", ", ".join(shown)))
    if sample := _sample(report.dataset):
        facts.append(("Input", sample))
    facts.append(("Model", str(dig(report.spec, "model.name", "not named"))))
    optimizer = dig(report.spec, "train.optimizer", {})
    if optimizer:
        rate = optimizer.get("lr")
        facts.append(("Optimizer", f"{optimizer.get('name', '')}{f', lr {show(rate)}' if rate is not None else ''}"))
    length = [
        f"{dig(report.spec, f'train.{unit}')} {unit}"
        for unit in ("epochs", "steps")
        if dig(report.spec, f"train.{unit}")
    ]
    if batch := dig(report.spec, "train.batch_size"):
        length.append(f"batch {batch}")
    if length:
        facts.append(("Training", ", ".join(length)))
    if report.layout:
        facts.append(("Layout", _layout(report.layout)))
    if report.search:
        facts.append(
            (
                "Search",
                f"{len(report.search.get('trials', []))} trials, {report.search.get('algorithm', '')}".rstrip(", "),
            )
        )
    facts.append(("Wall time", format_seconds(report.goodput.wall_s)))
    facts.append(("Productive", f"{100 * report.goodput.ettr:.0f} %"))
    return facts


def _sample(dataset: dict[str, Any]) -> str:
    """What one sample is, in words; empty where the report does not know."""
    shape, codes = dig(dataset, "input_shape", []), dig(dataset, "num_codes", [])
    match dataset.get("kind"), *shape:
        case "tokens", steps if codes:
            return f"{steps:,} tokens of a vocabulary of {codes[0]:,}"
        case "codes", columns if codes:
            most = f"{min(codes):,} to {max(codes):,}" if min(codes) < max(codes) else f"{codes[0]:,}"
            return f"{columns} column{'s' * (columns != 1)} of {most} codes"
        case "sequence", steps, features:
            return f"up to {steps:,} steps of {features - 1:,} feature{'s' * (features != 2)}"
        case "vector", features:
            return f"{features:,} feature{'s' * (features != 1)}"
    return " × ".join(str(axis) for axis in shape)


def _layout(layout: dict[str, Any]) -> str:
    degrees = [f"{axis} {layout[axis]}" for axis in ("data", "tensor", "pipeline") if layout.get(axis, 1) != 1]
    words = [" × ".join(degrees) or "one worker"]
    if "zero_stage" in layout:
        words.append(f"ZeRO {layout['zero_stage']}")
    if layout.get("offload", "none") != "none":
        words.append(f"offload to {layout['offload']}")
    return ", ".join(words)


def _ratio(theirs: float, ours: float) -> float | None:
    return theirs / ours if ours > 0 and theirs > 0 else None
