"""The report of a run: `report.json` for programs, `report.html` for people, a few lines for the terminal.

The page is one file that needs nothing else: styles, drawings and a small script are inside, and a content
security policy keeps the browser from loading or running anything that is not.

RunReport leaves some fields open. What stands in them:

    spec         JobSpec.resolved()
    dataset      DatasetInfo JSON; further keys are kept and not shown
    model        ModelSummary JSON; not shown
    layout       data, tensor, pipeline: degrees; zero_stage, offload; further keys are not shown
    stages       [{name, hash, reused, seconds}], in order; seconds of a reused stage: what it took when it ran
    curves       {training: [{epoch, step, split, loss, metric, lr}]}
                 `train`, `recover/<artifact>`, …: rows of split train and validation; drawn by epoch where each
                 split has one row an epoch, else by step. metric and lr may be None or left out.
    search       None, or
        trials       [Trial JSON]; numbers are unique within a phase
        space        {key: dimension as in the spec}: {"loguniform": [1e-4, 0.1]}, {"choice": ["a", "b"]}, …
        objectives   {"metric": "max", "bytes": "min", …}
        mode, algorithm, scheduler      as in the spec
        importance   {study: {trials, shares: {objective: {key: share}}, left_out: [key], note}}, by the names that
                     `orchestrator.views.study.named_parts` gives
        pareto       numbers of the trials on the front over the objectives
        further keys (completed, pruned, errored, best, …) are kept and not shown: counts come from the trials,
        and which trial went on from `best_trials` (training) and `best_compression` (the others)
    budget       Budget JSON
    environment  {"versions": {package: version}, "host": {fact: value}, …}: a table for each mapping
    artifacts[].measurement.details
                 classification: {"classes": [name], "precision": [x], "recall": [x], "f1": [x],
                 "confusion": [[count]]}, confusion[true][predicted], all in label order;
                 regression: {"rmse": x, "mae": x, "r2": x}
                 language models: {"perplexity": x, "bits_per_token": x, "accuracy": x, "tokens": n, "samples": n}

A figure that is not finite is written to report.json as the text "NaN", "Infinity" or "-Infinity" (JSON has no
such numbers), and read back as what it was where the record says float.
"""

import base64
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from jobs.errors import ArtifactError
from jobs.records import RunReport
from jobs.storage import read_json, write_json, write_text
from orchestrator.units import format_bytes, format_change, format_metric, format_ms
from orchestrator.verdict import p50
from orchestrator.views.artifacts import artifacts_view
from orchestrator.views.classes import ClassesView, details_view
from orchestrator.views.common import dig, subject_of
from orchestrator.views.headline import headline
from orchestrator.views.process import process_view
from orchestrator.views.search import search_view
from orchestrator.views.training import training_view

JSON_NAME, HTML_NAME = "report.json", "report.html"
_TEMPLATES = Path(__file__).with_name("templates")


def write_report(report: RunReport, folder: Path) -> None:
    """Writes report.json and report.html, each atomically. Raises StorageError on a full disk."""
    page = render_html(report)
    write_json(folder / JSON_NAME, _finite(report.to_json()))
    write_text(folder / HTML_NAME, page)


def read_report(folder: Path) -> RunReport:
    """The report of a run directory. Raises ArtifactError where it is missing or damaged."""
    path = folder / JSON_NAME
    try:
        return RunReport.from_json(read_json(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"there is no report at {path}: the run has not finished, or is no run") from error
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(f"the report at {path} is damaged: {error}") from error


def render_html(report: RunReport) -> str:
    """One self-contained page. Whatever stands in the report is escaped."""
    subject = subject_of(report)
    details = details_view(subject)
    pick = str(dig(report.spec, "compress.pick", "smallest"))
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    return _template().render(
        report=report,
        subject=subject,
        headline=headline(report, subject),
        artifacts=artifacts_view(subject, report.budget),
        training=training_view(report.curves, subject),
        search=search_view(report.search, pick, subject) if report.search else None,
        classes=details if isinstance(details, ClassesView) else None,
        figures=None if isinstance(details, ClassesView) else details,
        process=process_view(report),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


@cache
def _template() -> jinja2.Template:
    """Compiled once: that takes about as long as rendering."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def summary_lines(report: RunReport) -> list[str]:
    """The report in plain text: what was selected, the warnings, a table of the artifacts."""
    subject = subject_of(report)
    lines = [f"{report.name} ({report.run_id}): {report.state}"]
    top = headline(report, subject)
    lines += filter(None, (top.notice, str(top.statement.striptags())))
    lines += [f"warning: {warning}" for warning in report.warnings]
    if not report.artifacts:
        return lines
    rows = [("", "artifact", subject.metric, "against dense", "file", "batch 1", "budget", "Pareto")]
    for artifact in report.artifacts:
        measured = artifact.measurement
        delta = measured.metric_delta
        rows.append(
            (
                "→" if subject.selected is artifact else "",
                artifact.name,
                format_metric(measured.metric.name, measured.metric.value),
                "" if delta is None else format_change(measured.metric.name, delta.value),
                format_bytes(measured.bytes),
                format_ms(p50(measured)) if "batch_1" in measured.latency_ms else "",
                "fits" if artifact.fits_budget else "out",
                "yes" if artifact.pareto else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = "<<>>>><<"
    lines.append("")
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return lines


def _finite(document: Any) -> Any:
    """The document with figures that JSON does not know as text that `float` reads."""
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_finite(value) for value in document]
    if isinstance(document, float) and not math.isfinite(document):
        return "NaN" if math.isnan(document) else ("Infinity" if document > 0 else "-Infinity")
    return document
