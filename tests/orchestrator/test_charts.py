"""Scales and labels of the drawings."""

import itertools

import pytest
from html_page import Page

from orchestrator.charts.plots import HALF_NAMED, Mark, line_chart
from orchestrator.charts.scales import Linear, Log, by_spread, thinned


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
