"""card.md: an artifact in words for whoever gets the folder and nothing else. Written from the records alone.

The sections follow Mitchell et al. 2019, Model Cards for Model Reporting. What no measurement can know, the intended
use and the ethical considerations, is left to the user and marked.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.export.card import CARD_NAME, read_card
from jobs.records import Artifact, Delta, Interval, Measurement, RunReport
from jobs.storage import write_text
from orchestrator.units import (
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_ms,
    format_ratio,
    significant,
)
from orchestrator.views.common import MODEL_CARD_NAME, STAGE_WORDS, change_interval
from orchestrator.views.headline import notice

TO_FILL_IN = "**To be filled in by whoever publishes the model:**"
MOST_CLASSES = 10
"""Classes listed, those with the lowest F1 first."""


def write_model_cards(report: RunReport, folder: Path) -> None:
    """Writes card.md beside each artifact.json of a run directory, atomically; one that is there is replaced.

    Raises ArtifactError where an artifact is not whole.
    """
    for artifact in report.artifacts:
        place = folder / "artifacts" / artifact.name
        write_text(place / MODEL_CARD_NAME, card_text(read_card(place), report))


def card_text(card: Mapping[str, Any], report: RunReport) -> str:
    """The model card in Markdown. Whatever the records hold stands in it as text: no name becomes markup.

    Args:
        card: artifact.json. Without a `measurement`, the card says so and gives no figure.
        report: of the run that the artifact is from.
    """
    found = card.get("measurement")
    measurement = None if found is None else Measurement.from_json(found)
    parts = [
        f"# Model card: {escaped(card['name'])}",
        escaped(notice(report)),
        *_details(card, report),
        *_files(card),
        *_lineage(card, report),
        *_figures(card, measurement),
        *_classes(measurement),
        *_verdict(card, report),
        *_use(card, report),
        *_environment(card),
        *_limits(card, measurement, report),
        "## Intended use\n",
        f"> {TO_FILL_IN} what the model is for, who should use it, and what it must not be used for.",
        "## Ethical considerations\n",
        f"> {TO_FILL_IN} whom the data show, who could be harmed by a wrong answer, and what was done about it.",
        "A resumed run writes this file anew: fill in a copy.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def escaped(text: Any) -> str:
    """Text that Markdown shows as it is: on one line, without markup, links or HTML, also within a table."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]{}<>|#~&!$])", r"\\\1", line)
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", line)


def _details(card: Mapping[str, Any], report: RunReport) -> list[str]:
    source = card["dataset"]["source"]
    named = ", ".join(f"{key}: {value}" for key, value in source.items() if value not in (None, [], {}))
    counts = report.dataset.get("num_samples", {})
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    model = report.spec.get("model", {})
    classes = card.get("classes", [])
    rows = [
        ("what it is", f"{STAGE_WORDS.get(card['stage'], card['stage'])} model of the run {card['run_id']}"),
        ("job", report.name),
        ("task", f"{card['task'].replace('_', ' ')}, trained with the loss {card['loss']}"),
        ("architecture", model.get("name") or model.get("class") or "the user's own"),
        ("data", named),
        ("fingerprint of the data", card["dataset"]["fingerprint"]),
        ("samples", splits),
        ("classes", _shortened(classes)),
    ]
    return ["## Model details", _table(("", ""), (row for row in rows if row[1]))]


def _shortened(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more (in {CARD_NAME})" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def _files(card: Mapping[str, Any]) -> list[str]:
    rows = ((file["path"], f"{file['bytes']:,}", file["sha256"]) for file in card["files"])
    return ["## Files", _table(("file", "bytes", "SHA-256"), rows)]


def _lineage(card: Mapping[str, Any], report: RunReport) -> list[str]:
    by_name = {artifact.name: artifact for artifact in report.artifacts}
    parents: list[Artifact] = []
    name = card["parent"]
    while name in by_name and by_name[name] not in parents:
        parents.insert(0, by_name[name])
        name = by_name[name].parent
    recipes = [(parent.name, parent.recipe) for parent in parents] + [(card["name"], card["recipe"])]
    line = " → ".join(escaped(name) for name, _ in recipes)
    blocks = [f"{escaped(name)}:\n\n{_fenced('json', json.dumps(recipe, indent=1))}" for name, recipe in recipes]
    return ["## Lineage and recipe", f"{line}. The recipe of each, as it was carried out:", *blocks]


def _figures(card: Mapping[str, Any], measurement: Measurement | None) -> list[str]:
    heading = "## Measured"
    if measurement is None:
        return [heading, "Nothing was measured of this artifact: no figure can be given."]
    found = measurement.metric
    rows = [_interval_row(found)]
    if measurement.metric_exact is not None:
        exact = measurement.metric_exact
        rows.append((f"{exact.name} where 8-bit sums do not saturate", *_interval_row(exact)[1:]))
    if card.get("test_metric"):
        rows.append(_interval_row(Interval.from_json(card["test_metric"])))
    if measurement.metric_delta is not None:
        rows.append(_delta_row(found, measurement.metric_delta))
    for key, latency in sorted(measurement.latency_ms.items(), key=lambda item: (len(item[0]), item[0])):
        against = "; ".join(
            f"{format_ratio(ratio.value)} that of {name} ({significant(ratio.ci95[0])} … {significant(ratio.ci95[1])})"
            for name, ratio in latency.against.items()
        )
        figures = f"p50 {format_ms(latency.p50)}, p90 {format_ms(latency.p90)}"
        rows.append((f"latency, {key.replace('_', ' ')}", figures, against, f"{latency.n} runs"))
    sparse = measurement.nonzero_params != measurement.params
    nonzero = f"{measurement.nonzero_params:,} not zero" if sparse else ""
    rows += [
        ("size", format_bytes(measurement.bytes), f"{format_bytes(measurement.bytes_zstd)} under zstd", ""),
        ("parameters", f"{measurement.params:,}", nonzero, ""),
        ("multiply-accumulates a sample", format_count(measurement.macs), "", ""),
        ("parity", significant(measurement.parity_max_abs_diff, 2), "largest difference of an output", ""),
    ]
    return [
        heading,
        "Through the exported file, in the runtime that serves it. Intervals are 95 %.",
        _table(("figure", "value", "interval, or against", "n"), rows),
        "Parity is to the model that the file was exported from."
        + (" Of an archive, all but its size is that of the file it restores." if card["stage"] == "pack" else ""),
    ]


def _interval_row(found: Interval) -> tuple[str, str, str, str]:
    low, high = (format_metric(found.name, bound) for bound in found.ci95)
    name = f"{found.name} on {found.split}"
    return (name, format_metric(found.name, found.value), f"{low} … {high}", f"{found.n:,} samples")


def _delta_row(metric: Interval, delta: Delta) -> tuple[str, str, str, str]:
    low, high = delta.ci95
    word = "better" if delta.value > 0 else "worse" if delta.value < 0 else "the same"
    if low <= 0 <= high and delta.value:
        word += ", but the interval holds no difference too"
    change = f"{format_change(metric.name, delta.value)}: {word}"
    return ("against the dense model", change, change_interval(metric.name, delta.ci95), f"{metric.n:,} pairs")


def _classes(measurement: Measurement | None) -> list[str]:
    details = {} if measurement is None else measurement.details
    if not {"classes", "precision", "recall", "f1"} <= details.keys():
        return []
    found = zip(*(details[key] for key in ("classes", "precision", "recall", "f1")), strict=True)
    rows = sorted(found, key=lambda row: row[3])
    cells = ((str(name), *(format_metric("f1", figure, 3) for figure in figures)) for name, *figures in rows)
    more = f"The {MOST_CLASSES} with the lowest F1 of {len(rows)}:" if len(rows) > MOST_CLASSES else "Lowest F1 first:"
    return ["### By class", more, _table(("class", "precision", "recall", "F1"), list(cells)[:MOST_CLASSES])]


def _verdict(card: Mapping[str, Any], report: RunReport) -> list[str]:
    allowed = {key: value for key, value in report.budget.items() if value is not None and value is not False}
    budget = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in allowed.items()) or "none was set"
    chosen = report.selected
    if card.get("measurement") is None:
        fits = "not known, since nothing was measured"
    else:
        fits = "fits" if card["fits_budget"] else "does not fit"
    return [
        "## Verdict",
        escaped(card["verdict"]),
        f"- Budget: {escaped(budget)}; this artifact: {fits}.\n"
        f"- On the Pareto front: {'yes' if card['pareto'] else 'no'}.\n"
        f"- Selected by the run: {'this one' if chosen == card['name'] else escaped(chosen) or 'none'}.",
    ]


def _use(card: Mapping[str, Any], report: RunReport) -> list[str]:
    kind, shape = report.dataset.get("kind", ""), report.dataset.get("input_shape", ())
    dtype = "int64" if kind in ("tokens", "codes") else "float32"
    sizes = " × ".join(["batch", *map(str, shape)])
    free = "; the number of steps is free unless the model fixes it" if kind in ("tokens", "sequence") else ""
    packed = any(file["path"].endswith(".thpack") for file in card["files"])
    code = [
        "import numpy as np",
        "import onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        f"x = np.zeros((1, {', '.join(map(str, shape))}), np.{dtype})  # in place of encoded samples",
        '(output,) = session.run(["output"], {"input": x})',
    ]
    return [
        "## How to use it",
        "In this folder, with Thresher, which encodes the samples and names the classes:",
        _fenced("sh", "thresher predict . --data SAMPLES\nthresher verify ."),
        f"In plain onnxruntime{', after `thresher unpack model.thpack --out .`' if packed else ''}:",
        _fenced("python", "\n".join(code)),
        f"`input` is {dtype}, {escaped(sizes)}{free}; its samples are encoded as `encoding` in {CARD_NAME} says "
        f"(kind {escaped(card['encoding'].get('kind', kind))}). `output` holds what the model gives before any softmax "
        "or sigmoid.",
    ]


def _environment(card: Mapping[str, Any]) -> list[str]:
    facts = card["environment"]
    rows = [*facts.get("host", {}).items(), ("threads", facts.get("threads")), *facts.get("versions", {}).items()]
    shown = ((key, ", ".join(map(str, value)) if isinstance(value, list) else value) for key, value in rows)
    return ["## Environment of the measurement", _table(("", ""), shown)]


def _limits(card: Mapping[str, Any], measurement: Measurement | None, report: RunReport) -> list[str]:
    limits = ["The figures hold for data like these alone: nothing was measured on any other."]
    if measurement is not None:
        limits.append("Latencies are of the host above; another processor may even order the artifacts otherwise.")
        split = measurement.metric.split
        limits.append(f"The run selects by the figures on {split}: those of the selected artifact flatter it a little.")
        if not card.get("test_metric"):
            limits.append("It was not measured on test: the dense and the selected artifact alone are.")
    if card.get("target"):
        limits.append(f"It was made for the host {card['target'].get('name')}, and measured on the one above.")
    limits += report.warnings
    return ["## Limits", "\n".join(f"- {escaped(limit)}" for limit in limits)]


def _table(heads: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(language: str, text: str) -> str:
    """A code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
