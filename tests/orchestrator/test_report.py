"""The report: what is on the page, what may never be on it, and the files."""

import base64
import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ArtifactError
from jobs.records import Artifact, Delta, Goodput, Interval, Latency, Measurement, RunReport
from jobs.spec.compress import Budget
from orchestrator.charts.plots import HALF_NAMED, Mark, line_chart
from orchestrator.charts.scales import Linear, Log, by_spread, thinned
from orchestrator.report import HTML_NAME, JSON_NAME, read_report, render_html, summary_lines, write_report
from orchestrator.selection import select
from orchestrator.verdict import judge_test

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPACE = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.optimizer.weight_decay": {"loguniform": [1e-6, 1e-1]},
    "model.args.dropout": {"uniform": [0.0, 0.5]},
    "model.args.activation": {"choice": ["relu", "gelu", "silu"]},
    "train.batch_size": {"logint": [32, 512]},
}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


# A made-up run that looks like a real one


def confusion_of(classes: tuple[str, ...], accuracy: float, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    counts = [[0] * len(classes) for _ in classes]
    for row in range(len(classes)):
        for _ in range(120):
            wrong = draw.random() > accuracy
            column = (row + draw.choice((1, 2, 2, 3))) % len(classes) if wrong else row
            counts[row][column] += 1
    return counts


def class_details(classes: tuple[str, ...] = CLASSES, accuracy: float = 0.93, seed: int = 0) -> dict[str, Any]:
    counts = confusion_of(classes, accuracy, seed)
    precision = [counts[i][i] / max(1, sum(row[i] for row in counts)) for i in range(len(classes))]
    recall = [counts[i][i] / sum(counts[i]) for i in range(len(classes))]
    f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)]
    return {"classes": list(classes), "precision": precision, "recall": recall, "f1": f1, "confusion": counts}


def an_artifact(
    name: str,
    parent: str | None,
    stage: Any,
    value: float,
    size: int,
    ms: float,
    *,
    metric: str = "accuracy",
    dense_value: float = 0.9312,
    half_width: float = 0.0022,
    details: dict[str, Any] | None = None,
    test: bool = False,
) -> Artifact:
    sign = -1 if metric in ("rmse", "perplexity") else 1
    delta = sign * (value - dense_value)
    params = 44_426 if stage == "dense" else 11_800
    interval = Interval(name=metric, value=value, ci95=(value - 0.007, value + 0.0066), n=6000, split="validation")
    return Artifact(
        name=name,
        parent=parent,
        stage=stage,
        recipe={},
        files=(),
        measurement=Measurement(
            metric=interval,
            metric_delta=None if parent is None else Delta(value=delta, ci95=(delta - half_width, delta + half_width)),
            details=class_details(accuracy=value, seed=size) if details is None else details,
            bytes=size,
            bytes_zstd=int(size * 0.88),
            params=params,
            nonzero_params=params,
            macs=281_640 if stage == "dense" else 90_210,
            latency_ms={
                "batch_1": Latency(p50=ms, p90=ms * 1.18, n=2000),
                "batch_64": Latency(p50=ms * 34, p90=ms * 38, n=80),
            },
            parity_max_abs_diff=2.4e-6 if stage != "quantize" else 0.083,
        ),
        test_metric=Interval(
            name=metric, value=value - 0.004, ci95=(value - 0.0093, value + 0.0011), n=10_000, split="test"
        )
        if test
        else None,
    )


def default_artifacts() -> tuple[Artifact, ...]:
    return (
        an_artifact("dense", None, "dense", 0.9312, 447_120, 0.0561, test=True),
        an_artifact("dense-int8_static", "dense", "quantize", 0.9290, 124_880, 0.0874),
        an_artifact("dense-int8_dynamic", "dense", "quantize", 0.9303, 118_020, 0.311),
        an_artifact("dense-fp16", "dense", "quantize", 0.9312, 226_300, 0.0583),
        an_artifact("pruned", "dense", "prune", 0.9287, 125_410, 0.0372),
        an_artifact("pruned-int8_static", "pruned", "quantize", 0.9281, 41_930, 0.0497, test=True),
        an_artifact("pruned-int8_dynamic", "pruned", "quantize", 0.9225, 39_870, 0.1262),
        an_artifact("pruned-fp16", "pruned", "quantize", 0.9288, 66_200, 0.0391),
    )


def curve(epochs: int, top: float, seed: int = 0, start: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for epoch in range(start, epochs + start):
        share = 1 - math.exp(-3.5 * epoch / epochs)
        lr = 1e-3 * math.sin(math.pi * min(1.0, (epoch + 0.2) / (epochs + 1)))
        loss = 0.18 + 0.9 * (1 - share)
        noise = draw.uniform(-0.008, 0.008)
        rows += [
            {"epoch": epoch, "step": epoch * 422, "split": "train", "loss": loss, "metric": None, "lr": lr},
            {
                "epoch": epoch,
                "step": epoch * 422,
                "split": "validation",
                "loss": loss * 0.8 + 0.09 + noise,
                "metric": top - 0.2 * (1 - share) + noise / 4,
                "lr": None,
            },
        ]
    return rows


def a_trial(number: int, phase: str = "train", seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed * 10_000 + number)
    lr = 10 ** draw.uniform(-4, -1)
    params = {
        "train.optimizer.lr": lr,
        "train.optimizer.weight_decay": 10 ** draw.uniform(-6, -1),
        "model.args.dropout": draw.uniform(0, 0.5),
        "model.args.activation": draw.choice(("relu", "gelu", "silu")),
        "train.batch_size": round(2 ** draw.uniform(5, 9)),
    }
    quality = 0.935 - 0.03 * (math.log10(lr) + 2.6) ** 2 + draw.uniform(-0.006, 0.006)
    state = "failed" if number % 17 == 16 else "pruned" if quality < 0.90 and number > 3 else "completed"
    epochs = {"failed": 1, "pruned": draw.randint(1, 4), "completed": 10}[state]
    points = [quality - 0.25 * math.exp(-0.6 * (epoch + 1)) for epoch in range(epochs)]
    values: dict[str, float] = {"metric": quality} if state == "completed" else {}
    if phase != "train":
        ratio = draw.uniform(0.2, 0.8)
        params = {"compress.prune.ratio": ratio}
        quality = 0.931 - 0.03 * ratio**4 + draw.uniform(-0.001, 0.001)
        state, points = "completed", []
        values = {"metric": quality, "bytes": 447_000 * (1 - ratio) ** 1.6, "latency_ms": 0.02 + 0.04 * (1 - ratio)}
    return {
        "number": number,
        "phase": phase,
        "params": params,
        "state": state,
        "cause": "the loss became NaN at step 31" if state == "failed" else "",
        "values": values,
        "violation": 0.931 - 0.005 - quality if phase != "train" else 0.0,
        "curve": points,
        "seconds": draw.uniform(3, 40),
        "steps": epochs * 422,
        "epochs": epochs,
    }


def a_search(trials: int = 40, compress: int = 16) -> dict[str, Any]:
    return {
        "trials": [a_trial(n) for n in range(trials)] + [a_trial(trials + n, "compress") for n in range(compress)],
        "space": {**SPACE, "compress.prune.ratio": {"uniform": [0.2, 0.8]}},
        "objectives": {"metric": "max", "bytes": "min"},
        "mode": "staged",
        "algorithm": "tpe",
        "scheduler": "asha",
        "best": None,
        "pareto": [trials + 3],
    }


def a_report(**changes: Any) -> RunReport:
    budget = changes.pop("budget_section", Budget())
    artifacts = changes.pop("artifacts", None)
    chosen = None
    direction = changes.pop("direction", "max")
    if artifacts is None:
        artifacts = default_artifacts()
    if artifacts:
        chosen = select(artifacts, dense=artifacts[0].name, budget=budget, pick="smallest", metric_direction=direction)
        artifacts = judge_test(chosen.artifacts, selected=chosen.selected, dense=artifacts[0].name, budget=budget)
    fields: dict[str, Any] = {
        "run_id": "lenet-fashion-20261104-091532-7f3a",
        "name": "lenet-fashion",
        "state": "succeeded",
        "layout": {"data": 2, "tensor": 1, "pipeline": 1, "zero_stage": 1},
        "model": {"params": 44_426},
        "dataset": {
            "task": "classification",
            "input_shape": [1, 28, 28],
            "num_samples": {"train": 54_000, "validation": 6000, "test": 10_000},
        },
        "spec": {
            "name": "lenet-fashion",
            "metric": "accuracy",
            "data": {"source": {"kind": "idx", "path": "data/fashion-mnist"}, "normalize": "standardize"},
            "model": {"name": "lenet", "args": {"conv_widths": [6, 16], "dropout": 0.2}},
            "train": {"epochs": 10, "batch_size": 128, "optimizer": {"name": "adamw", "lr": 1e-3}},
            "compress": {"pick": "smallest", "budget": budget.model_dump()},
        },
        "stages": (
            {"name": "prepare", "hash": "a1" * 32, "reused": True, "seconds": 2.1},
            {"name": "search", "hash": "b2" * 32, "reused": False, "seconds": 312.0},
            {"name": "train", "hash": "c3" * 32, "reused": True, "seconds": 96.4},
            {"name": "prune", "hash": "d4" * 32, "reused": False, "seconds": 41.2},
            {"name": "quantize", "hash": "e5" * 32, "reused": False, "seconds": 6.9},
            {"name": "measure", "hash": "f6" * 32, "reused": False, "seconds": 14.8},
        ),
        "curves": {"train": curve(10, 0.9312), "recover/pruned": curve(3, 0.9287, 1)},
        "search": a_search(),
        "artifacts": artifacts,
        "selected": chosen.selected if chosen else "",
        "budget": budget.model_dump(mode="json"),
        "warnings": chosen.warnings if chosen else (),
        "goodput": Goodput(
            wall_s=421.0,
            queued_s=3.0,
            startup_s=21.0,
            productive_s=352.0,
            checkpoint_s=9.0,
            recompute_s=6.0,
            restart_s=14.0,
            restarts=({"stage": "train", "cause": "worker 1 on node 2 was killed", "t": 1762246612.0},),
            ettr=0.84,
        ),
        "environment": {
            "versions": {"torch": "2.13.0", "deepspeed": "0.19.8", "ray": "2.60.0", "onnxruntime": "1.32.0"},
            "host": {"processor": "AMD EPYC", "instructions": ["avx2"], "cpus": 2, "memory_bytes": 25_280_000_000},
        },
    }
    return RunReport(**{**fields, **changes})


def a_regression() -> RunReport:
    options: dict[str, Any] = {"metric": "rmse", "dense_value": 53.1, "half_width": 0.4}
    dense = an_artifact(
        "dense", None, "dense", 53.1, 12_400, 0.011, **options, details={"rmse": 53.1, "mae": 42.7, "r2": 0.512}
    )
    pruned = an_artifact(
        "pruned", "dense", "prune", 53.4, 6100, 0.009, **options, details={"rmse": 53.4, "mae": 43.0, "r2": 0.506}
    )
    return a_report(
        name="diabetes",
        artifacts=(dense, pruned),
        direction="min",
        budget_section=Budget(max_metric_drop=1.0, max_bytes=8000),
        search=None,
    )


def a_language_model() -> RunReport:
    options: dict[str, Any] = {"metric": "perplexity", "dense_value": 24.8, "half_width": 0.05}
    dense, quantized = (
        an_artifact(name, parent, stage, value, size, ms, **options, details=language_details(value))
        for name, parent, stage, value, size, ms in (
            ("dense", None, "dense", 24.8, 2_100_000, 0.43),
            ("dense-int8_dynamic", "dense", "quantize", 25.2, 540_000, 0.23),
        )
    )
    rows = curve(10, 0.0)
    for row in rows:
        row["metric"] = None if row["split"] == "train" else 24.8 + 900.0 / row["epoch"] ** 3
    spec = a_report().spec
    return a_report(
        name="letters",
        artifacts=(dense, quantized),
        direction="min",
        budget_section=Budget(max_metric_drop=0.5),
        search=None,
        curves={"train": rows},
        layout={"data": 2, "tensor": 2, "pipeline": 2, "zero_stage": 1, "offload": "cpu"},
        dataset={
            "task": "language_model",
            "kind": "tokens",
            "input_shape": [128],
            "num_codes": [2048],
            "num_samples": {"train": 9000, "validation": 500, "test": 500},
        },
        spec={
            **spec,
            "metric": "perplexity",
            "data": {"source": {"kind": "text", "path": "data/Synthetic-letters.txt"}},
        },
    )


def language_details(perplexity: float) -> dict[str, Any]:
    bits = math.log2(perplexity)
    return {
        "perplexity": perplexity,
        "accuracy": 0.412,
        "bits_per_token": bits,
        "tokens": 63_500,
        "samples": 500,
    }


def a_failure() -> RunReport:
    return a_report(
        state="failed", artifacts=(), search=None, curves={}, stages=(), environment={}, dataset={}, spec={}
    )


# Reading the page as a browser would


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack[-1] == tag, f"</{tag}> inside {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str, class_: str = "") -> int:
        return sum(name == tag and class_ in ["", *(attrs.get("class") or "").split()] for name, attrs in self.tags)


EDGE_CASES: dict[str, Callable[[], RunReport]] = {
    "full": a_report,
    "no search": lambda: a_report(search=None),
    "regression": a_regression,
    "language model": a_language_model,
    "one artifact": lambda: a_report(artifacts=(an_artifact("dense", None, "dense", 0.93, 447_120, 0.05),)),
    "failed": a_failure,
    "empty curves": lambda: a_report(curves={"train": [], "recover/pruned": []}),
    "curves with gaps": lambda: a_report(
        curves={"train": [{"epoch": 1, "step": 5, "split": "train", "loss": "NaN", "metric": None}, {}]}
    ),
    "one epoch": lambda: a_report(curves={"train": curve(1, 0.9)}),
    "search without trials": lambda: a_report(search={"trials": []}),
    "search where all failed": lambda: a_report(search={**a_search(), "trials": [a_trial(16), a_trial(33)]}),
    "no details": lambda: a_report(
        artifacts=(an_artifact("dense", None, "dense", 0.93, 447_120, 0.05, details={}),), budget={}
    ),
    "NaN metric": lambda: a_report(
        artifacts=(
            an_artifact("dense", None, "dense", 0.93, 447_120, 0.05),
            an_artifact("broken", "dense", "prune", math.nan, 1000, 0.01),
        )
    ),
}


@dataclass(frozen=True)
class Rendered:
    report: RunReport
    html: str
    page: Page


@pytest.fixture(scope="module", params=EDGE_CASES, ids=lambda name: name.replace(" ", "-"))
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Each case once for all tests: pytest goes through the tests case by case."""
    report = EDGE_CASES[request.param]()
    html = render_html(report)
    return Rendered(report, html, Page(html))


def test_every_page_is_well_formed_and_loads_nothing(rendered: Rendered) -> None:
    report, html, page = rendered.report, rendered.html, rendered.page
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        if tag == "link":
            assert attributes == {"rel": "icon", "href": "data:,"}
        if tag == "a":
            assert re.fullmatch(r"#.*|artifacts/[\w%.-]+/card\.md", attributes["href"] or "")
    links = {attributes["href"] or "" for tag, attributes in page.tags if tag == "a"}
    assert {link for link in links if link[0] != "#"} == {f"artifacts/{a.name}/card.md" for a in report.artifacts}
    anchors = {link for link in links if link[0] == "#"}
    assert anchors <= {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}


def test_no_drawing_holds_a_figure_that_is_none(rendered: Rendered) -> None:
    for tag, attributes in rendered.page.tags:
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d", "width", "height", "style", "transform"):
            value = attributes.get(name) or ""
            assert not re.search(r"\bnan\b|\binf\b|None", value, re.IGNORECASE), f"{tag} {name}={value}"


def test_texts_never_show_python(rendered: Rendered) -> None:
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Undefined|Markup\(", rendered.page.text)


def test_files_come_back_as_what_was_written(rendered: Rendered, tmp_path: Path) -> None:
    report = rendered.report
    write_report(report, tmp_path)
    again = read_report(tmp_path)
    assert str(again) == str(report) or "NaN" in (tmp_path / JSON_NAME).read_text()
    assert (tmp_path / HTML_NAME).read_text(encoding="utf-8") == rendered.html
    assert sorted(path.name for path in tmp_path.iterdir()) == [HTML_NAME, JSON_NAME]


def test_figures_that_json_lacks_survive(tmp_path: Path) -> None:
    write_report(EDGE_CASES["NaN metric"](), tmp_path)
    assert math.isnan(read_report(tmp_path).artifacts[1].measurement.metric.value)


# What is on the page


def test_headline_says_what_was_selected_and_gained() -> None:
    page = Page(render_html(a_report()))
    assert (
        "pruned-int8_static was selected: 10.7× smaller and 1.1× faster than the dense model, "
        "accuracy −0.31 points , within the budget of 0.5 points."
    ) in page.text
    assert page.count("span", "strong") >= 1


def test_headline_does_not_call_noise_faster() -> None:
    dense = an_artifact("dense", None, "dense", 0.9312, 447_120, 0.0561)
    half = an_artifact("half", "dense", "quantize", 0.9312, 223_560, 0.0558)
    page = Page(render_html(a_report(artifacts=(dense, half), selected="half")))
    assert "half was selected: 2.0× smaller than the dense model and about as fast, accuracy" in page.text
    assert "about as fast as 56.1 µs" in page.text


def test_headline_of_a_dense_model_that_is_kept() -> None:
    kept = a_report(artifacts=default_artifacts()[:2], budget_section=Budget(max_metric_drop=0.0001))
    page = Page(render_html(kept))
    assert "dense , the dense model, kept as it is: accuracy 93.12 % on validation" in page.text
    assert "nothing but the dense model fits the budget" in page.text


def test_headline_says_outside_where_nothing_fits() -> None:
    page = Page(render_html(a_report(budget_section=Budget(max_bytes=10))))
    assert "outside the budget" in page.text
    assert "nothing fits the budget" in page.text


def test_all_artifacts_are_in_lineage_table_and_plots() -> None:
    html = render_html(a_report())
    page = Page(html)
    for artifact in default_artifacts():
        assert html.count(f">{artifact.name}<") >= 4
    assert page.count("rect", "node") == len(default_artifacts())
    assert page.count("path", "front") >= 2
    assert page.count("line", "budget") >= 2
    assert "10.7× smaller" in page.text
    assert "slower than its parent (batch 1: 87 µs against 56 µs" in page.text


def test_a_single_artifact_has_no_lineage_and_no_trade_offs() -> None:
    page = Page(render_html(EDGE_CASES["one artifact"]()))
    assert page.count("rect", "node") == 0
    assert "Trade-offs" not in page.text


def test_search_tells_states_apart_and_marks_the_best() -> None:
    report = a_report()
    page = Page(render_html(report))
    assert report.search is not None
    trials = [trial for trial in report.search["trials"] if trial["phase"] == "train"]
    failed = sum(trial["state"] == "failed" for trial in trials)
    pruned = sum(trial["state"] == "pruned" for trial in trials)
    assert failed > 0
    assert pruned > 0
    assert f"{len(trials) - failed - pruned} completed, {pruned} pruned, {failed} failed" in page.text
    best = max((t for t in trials if t["values"]), key=lambda t: t["values"]["metric"])
    row = next(i for i, (tag, attrs) in enumerate(page.tags) if tag == "tr" and "best" in (attrs.get("class") or ""))
    assert page.tags[row][1]["data-key"] == f"train-0-{best['number']}"
    assert page.count("path", "strand") > 20


IMPORTANCE = {
    "train-0": {
        "trials": 27,
        "shares": {"metric": {"train.optimizer.lr": 0.71, "model.args.dropout": 0.29}},
        "left_out": ["train.batch_size"],
        "note": "",
    },
    "compress-0": {"trials": 3, "shares": {}, "left_out": [], "note": "What mattered can't be said of 3."},
}


def test_search_says_what_mattered_or_why_it_can_not() -> None:
    page = Page(render_html(a_report(search={**a_search(), "importance": IMPORTANCE})))
    assert page.count("rect", "bar-metric") == 2
    assert "71 %" in page.text
    assert "over 27 completed trials" in page.text
    assert "had one value: train.batch_size." in page.text
    assert "What mattered can't be said of 3." in page.text
    assert "What mattered" not in Page(render_html(a_report())).text  # of a report that says nothing of it


def test_several_objectives_have_a_bar_each_and_a_front_for_every_pair() -> None:
    shares = {name: {"compress.prune.ratio": 1.0} for name in ("metric", "bytes", "latency_ms")}
    said = {"compress-0": {"trials": 16, "shares": shares, "left_out": [], "note": ""}}
    search = a_search(trials=0)
    search = {**search, "objectives": {"metric": "max", "latency_ms": "min", "bytes": "min"}, "importance": said}
    page = Page(render_html(a_report(search=search)))
    for title in (
        "Metric against bytes of the file",
        "Metric against p50 at batch 1",
        "p50 at batch 1 against bytes of the file",
    ):
        assert title in page.text
    assert "Pareto front of two objectives" in page.text
    others = Page(render_html(a_report(search=None))).count("path", "front")
    assert page.count("path", "front") == others + 3 + 1  # the legend's
    assert [page.count("rect", f"bar-{name}") for name in shares] == [2, 2, 2]  # with those of the legend


def test_the_best_learning_curves_are_named() -> None:
    page = Page(render_html(a_report(search=a_search(compress=0))))
    assert page.count("path", "strand-top") == 4
    assert page.count("circle", "fill-front") == 1
    ranked = sorted((t for t in a_search()["trials"][:40] if t["values"]), key=lambda t: -t["values"]["metric"])
    for trial in ranked[:5]:
        assert f"trial {trial['number']} " in page.text


def test_names_at_the_ends_of_lines_do_not_cover_one_another() -> None:
    x, y = Linear(0, 10, *HALF_NAMED.x_range), Linear(0, 1, *HALF_NAMED.y_range)
    for level in (0.0, 0.5, 1.0):
        ends = [Mark(10, level + 0.001 * n, "fill-completed", "", label=f"trial {n}") for n in range(5)]
        page = Page(line_chart(HALF_NAMED, x, y, [], label="", x_name="", y_name="", ends=ends))
        names = [attributes for tag, attributes in page.tags if tag == "text" and attributes["class"] == "name"]
        heights = [float(str(attributes["y"])) for attributes in names]
        assert len(heights) == 5
        assert min(b - a for a, b in itertools.pairwise(heights)) >= 13
        assert HALF_NAMED.top <= heights[0]
        assert heights[-1] <= HALF_NAMED.height - HALF_NAMED.bottom + 5


def test_a_search_on_its_own_has_a_page() -> None:
    report = a_report(artifacts=(), curves={}, warnings=("the search ended early: enough",))
    text = Page(render_html(report)).text
    assert "A search and no more:" in text
    assert "the search ended early: enough" in text
    nothing = a_report(artifacts=(), curves={}, search={**a_search(), "trials": [a_trial(16)]})
    assert "A search and no more: no trial completed." in Page(render_html(nothing)).text


def test_parallel_axes_are_logarithmic_where_the_space_is() -> None:
    html = render_html(a_report())
    for tick in ("1e−4", "0.001", "0.01", "0.1"):
        assert f">{tick}</text>" in html
    assert ">gelu</text>" in html


def test_regression_shows_its_figures_and_falling_is_better() -> None:
    page = Page(render_html(a_regression()))
    for words in ("RMSE", "53.4", "dense model: 53.1", "R²", "0.506", "rmse +0.30"):
        assert words in page.text
    assert "Confusion" not in page.text


def test_a_language_model_shows_its_perplexity_and_no_classes() -> None:
    page = Page(render_html(a_language_model()))
    for words in (
        "dense-int8_dynamic was selected: 3.9× smaller and 1.9× faster than the dense model, "
        "perplexity +0.40 (+1.6 %), within the budget of 0.50 in perplexity.",
        "128 tokens of a vocabulary of 2,048",
        "data 2 × tensor 2 × pipeline 2, ZeRO 1, offload to cpu",
        "63,500 tokens to predict, in 500 samples",
        "Bits a token 4.655 dense model: 4.632",
        "Next token right 41.20 %",
        "best perplexity 25.70 at epoch 10",
        "perplexity, validation, log scale",
        "Down and to the left is better",
    ):
        assert words in page.text
    assert "Confusion" not in page.text


def test_a_perplexity_out_of_budget_is_said_to_rise() -> None:
    options: dict[str, Any] = {"metric": "perplexity", "dense_value": 24.8, "half_width": 0.4, "details": {}}
    dense = an_artifact("dense", None, "dense", 24.8, 2_100_000, 0.43, **options)
    worse = an_artifact("dense-fp16", "dense", "quantize", 25.5, 1_000_000, 0.43, **options)
    chosen = select(
        (dense, worse), dense="dense", budget=Budget(max_metric_drop=0.5), pick="smallest", metric_direction="min"
    )
    assert chosen.selected == "dense"
    assert chosen.artifacts[1].verdict == (
        "2.1× smaller, about as fast, perplexity +0.70 (+2.8 %); out of budget: perplexity rises by 0.70, 0.50 "
        "allowed; not resolvable with n = 6000: the 95 % interval of the rise is wider than the budget"
    )


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"kind": "codes", "input_shape": [3], "num_codes": [20, 1500, 7]}, "3 columns of 7 to 1,500 codes"),
        ({"kind": "codes", "input_shape": [1], "num_codes": [20]}, "1 column of 20 codes"),
        ({"kind": "sequence", "input_shape": [64, 4]}, "up to 64 steps of 3 features"),
        ({"kind": "vector", "input_shape": [30]}, "30 features"),
        ({"kind": "image", "input_shape": [1, 28, 28]}, "1 × 28 × 28"),
    ],
    ids=["codes", "one-column", "sequence", "vector", "image"],
)
def test_a_sample_is_described_by_what_it_is(dataset: dict[str, Any], words: str) -> None:
    assert words in Page(render_html(a_report(dataset=dataset, search=None))).text


@pytest.mark.parametrize(
    "source", [{"kind": "csv", "path": "data/clicks-SYNTHETIC.csv"}, {"name": "synthetic_ratings"}]
)
def test_synthetic_data_are_called_so_before_any_figure(source: dict[str, str]) -> None:
    report = a_report(search=None)
    assert "SYNTHETIC" not in Page(render_html(report)).text
    report = report.model_copy(update={"spec": {**report.spec, "data": {"source": source}}})
    text = Page(render_html(report)).text
    assert 0 < text.index("SYNTHETIC data:") < text.index("was selected")
    assert summary_lines(report)[1].startswith("SYNTHETIC data:")


def test_confusion_matrix_shows_counts_and_frequent_errors() -> None:
    report = a_report()
    page = Page(render_html(report))
    details = next(a for a in report.artifacts if a.name == report.selected).measurement.details
    assert page.count("rect", "right") == len(CLASSES)
    assert str(details["confusion"][0][0]) in page.text
    assert "Most frequent errors" in page.text


def test_goodput_shares_add_up_to_the_whole() -> None:
    page = Page(render_html(a_report()))
    shares = [
        float(re.search(r"flex:([\d.]+)", attrs["style"] or "").group(1))  # type: ignore[union-attr]
        for tag, attrs in page.tags
        if tag == "span" and (attrs.get("class") or "").startswith("time-")
    ]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.01)
    assert "5 min 52 s" in page.text
    assert "worker 1 on node 2 was killed" in page.text


def test_environment_and_spec_are_there() -> None:
    page = Page(render_html(a_report()))
    assert "deepspeed 0.19.8" in page.text
    assert "25.3 GB" in page.text
    assert "conv_widths:" in page.text


# Size and safety


def test_large_searches_and_many_classes_stay_readable() -> None:
    classes = tuple(f"class number {index}" for index in range(100))
    wide = an_artifact("dense", None, "dense", 0.7, 4_000_000, 3.0, details=class_details(classes, 0.7))
    report = a_report(artifacts=(wide,), search=a_search(trials=1000, compress=0))
    html = render_html(report)
    page = Page(html)
    assert len(html) < 3_500_000
    assert page.count("path", "strand") <= 420
    assert "The table shows the 100 best of 1000 trials" in page.text
    assert "classes with the lowest F1, of 100" in page.text


def test_a_thousand_classes_are_listed_and_not_drawn() -> None:
    classes = tuple(str(index) for index in range(1000))
    details = {**class_details(classes[:2]), "classes": classes, "confusion": [[1] * 1000] * 1000}
    for key in ("precision", "recall", "f1"):
        details[key] = [0.5] * 1000
    wide = an_artifact("dense", None, "dense", 0.7, 4_000_000, 3.0, details={**details, "classes": list(classes)})
    page = Page(render_html(a_report(artifacts=(wide,), search=None)))
    assert page.count("rect", "cell") == 0
    assert "Most frequent errors" in page.text


def test_hostile_names_are_text_and_nothing_else() -> None:
    dense = an_artifact(HOSTILE, None, "dense", 0.93, 400_000, 0.05, details=class_details((HOSTILE, "b", "c")))
    child = an_artifact(f"{HOSTILE}2", HOSTILE, "prune", 0.93, 40_000, 0.04, details=class_details((HOSTILE, "b", "c")))
    search = a_search()
    search["space"][HOSTILE] = {"choice": [HOSTILE, "b"]}
    search["algorithm"] = HOSTILE
    for trial in search["trials"]:
        trial["params"][HOSTILE] = HOSTILE
        trial["cause"] = HOSTILE
    report = a_report(
        name=HOSTILE,
        run_id=HOSTILE,
        artifacts=(dense, child),
        search=search,
        curves={HOSTILE: curve(3, 0.9)},
        warnings=(HOSTILE,),
        stages=({"name": HOSTILE, "hash": HOSTILE, "reused": False, "seconds": 1.0},),
        environment={HOSTILE: {HOSTILE: HOSTILE}, "loose": HOSTILE},
        spec={"name": HOSTILE, "data": {"source": {"kind": HOSTILE, "path": HOSTILE}}, "model": {"name": HOSTILE}},
        dataset={"input_shape": [HOSTILE]},
        layout={"data": HOSTILE, "zero_stage": HOSTILE},
    )
    html = render_html(report)
    page = Page(html)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert "<script>alert" not in html
    assert page.text.count("alert(1)") > 10


def test_the_policy_admits_the_one_script_alone() -> None:
    html = render_html(a_report())
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html


# Scales


def test_ticks_are_round_and_within_the_range() -> None:
    scale = Linear(0.913, 0.942, 0.0, 100.0, percent=True)
    labels = [label for _, label in scale.ticks()]
    assert labels == ["92 %", "93 %", "94 %"]
    assert all(0.0 <= position <= 100.0 for position, _ in scale.ticks())
    assert [label for _, label in Linear(0.0, 2.0, 0.0, 1.0, whole=True).ticks()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-4, 1e-1, ["1e−4", "0.001", "0.01", "0.1"]),
        (32, 512, ["50", "100", "200", "500"]),
        (1e-9, 1e9, None),
        (1.0, 1.001, None),
    ],
)
def test_log_ticks_are_few_and_within_the_range(low: float, high: float, expected: list[str] | None) -> None:
    ticks = Log(low, high, 0.0, 100.0).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(-1e-6 <= position <= 100.000001 for position, _ in ticks)
    assert expected is None or [label for _, label in ticks] == expected


def test_thinned_labels_do_not_touch() -> None:
    ticks = [(float(10 * index), "label") for index in range(11)]
    assert [position for position, _ in thinned(ticks, lambda label: 35.0)] == [0.0, 40.0, 80.0]


def test_one_value_still_makes_a_scale() -> None:
    for values in ([0.0], [5.0], [-3.0, -3.0]):
        assert 0 < by_spread(values, 0.0, 100.0).position(values[0]) < 100


# Files and the terminal


def test_a_missing_report_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no report"):
        read_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run_id": 1}', b"\xff\xfe"])
def test_a_damaged_report_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JSON_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_report(tmp_path)


def test_summary_names_the_selected_and_lists_all() -> None:
    lines = summary_lines(a_report())
    assert lines[0] == "lenet-fashion (lenet-fashion-20261104-091532-7f3a): succeeded"
    assert lines[1].startswith("pruned-int8_static was selected: 10.7× smaller")
    marked = [line for line in lines if line.startswith("→")]
    assert len(marked) == 1
    assert "pruned-int8_static" in marked[0]
    assert "41.9 KB" in marked[0]
    assert sum("dense" in line or "pruned" in line for line in lines[2:]) == 9


def test_summary_of_a_failed_run_is_short() -> None:
    assert summary_lines(a_failure())[1:] == ["The run failed before an artifact was selected."]
