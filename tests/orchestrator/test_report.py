"""The report: a page that is well-formed and safe whatever the run, its size, the files and the terminal's lines."""

import base64
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from html_page import Page
from made_up_reports import (
    a_failure,
    a_language_model,
    a_regression,
    a_report,
    a_search,
    a_trial,
    an_artifact,
    class_details,
    curve,
)

from jobs.errors import ArtifactError
from jobs.records import RunReport
from orchestrator.report import HTML_NAME, JSON_NAME, read_report, render_html, summary_lines, write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


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
