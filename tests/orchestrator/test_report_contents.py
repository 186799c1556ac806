"""What the report's page says of a run: the headline, the artifacts, the search, the rest."""

import re
from typing import Any

import pytest
from html_page import Page
from made_up_reports import (
    CLASSES,
    a_language_model,
    a_regression,
    a_report,
    a_search,
    a_trial,
    an_artifact,
    default_artifacts,
)

from jobs.spec.compress import Budget
from orchestrator.report import render_html, summary_lines
from orchestrator.selection import select


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
    page = Page(render_html(a_report(budget_section=Budget(max_bytes=10, max_latency_ms=2.0))))
    assert "outside the budget of 0.5 points, 10 B and 2.00 ms." in page.text
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
    page = Page(render_html(a_report(artifacts=default_artifacts()[:1])))
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
