"""What is said of an artifact, and how figures read."""

import math
from typing import Any

import pytest
from small_artifacts import DENSE, artifact, choose, verdict_of

from jobs.records import Artifact, Ratio
from jobs.spec.compress import Budget
from orchestrator.units import (
    format_apart,
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_ms,
    format_ratio,
    format_seconds,
)
from orchestrator.verdict import judge_test


def test_verdict_of_a_gain() -> None:
    words = verdict_of("pruned", artifact("pruned", accuracy=0.928, size=111_000, ms=0.037))
    assert words == "3.6× smaller, 1.5× faster, accuracy −0.2 points"


def test_verdict_says_slower_and_bigger_than_the_parent() -> None:
    words = verdict_of(
        "int8",
        artifact("pruned", size=120_000, ms=0.056),
        artifact("int8", "pruned", size=130_000, ms=0.087, ms_64=2.2),
    )
    assert "slower than its parent (batch 1: 87 µs against 56 µs, batch 64: 2.2 ms against 1.9 ms)" in words
    assert "bigger than its parent (130 KB against 120 KB)" in words
    assert words.startswith("3.1× smaller")


def test_verdict_says_out_of_budget_and_why() -> None:
    words = verdict_of("pruned", artifact("pruned", accuracy=0.918, size=10))
    assert "out of budget: accuracy drops by 1.2 points, 0.5 points allowed" in words


def test_verdict_says_what_n_cannot_resolve() -> None:
    unclear = artifact("pruned", size=10, half_width=0.0026, n=500)
    words = "not resolvable with n = 500: the 95 % interval of the drop is wider than the budget"
    assert words in verdict_of("pruned", unclear)
    assert words in choose(unclear).warnings[0]
    assert words not in verdict_of("pruned", artifact("pruned", size=10, half_width=0.0025, n=500))
    assert words not in verdict_of("pruned", unclear, budget=Budget(max_metric_drop=None))


def test_verdict_where_nothing_was_gained() -> None:
    words = verdict_of("int8", artifact("int8", size=500_000, ms=0.1, accuracy=0.929))
    assert words.startswith("nothing gained over the dense model; slower")


def test_a_miss_on_test_is_a_verdict_and_changes_no_choice() -> None:
    dense = artifact("dense", None, test=0.93)
    chosen = choose(artifact("pruned", size=10, test=0.92), dense=dense)
    judged = judge_test(chosen.artifacts, selected="pruned", dense="dense", budget=Budget())
    assert judged[1].verdict.endswith("misses the budget on test: accuracy drops by 1 point, 0.5 points allowed")
    assert judged[1].fits_budget
    kept = choose(artifact("pruned", size=10, test=0.926), dense=dense).artifacts
    assert judge_test(kept, selected="pruned", dense="dense", budget=Budget()) == kept
    assert judge_test((DENSE,), selected="dense", dense="dense", budget=Budget()) == (DENSE,)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_bytes(12), "12 B"),
        (format_bytes(999.6), "1.00 KB"),
        (format_bytes(431_144), "431 KB"),
        (format_ms(0.0564), "56.4 µs"),
        (format_ms(0.9996), "1.00 ms"),
        (format_ms(12_345), "12.3 s"),
        (format_count(61_706), "61.7 k"),
        (format_seconds(0.0123), "12 ms"),
        (format_seconds(59.7), "1 min"),
        (format_seconds(3725), "1 h 2 min"),
        (format_ratio(1.04), "1.04×"),
        (format_ratio(12.44), "12.4×"),
        (format_ratio(109.3), "109×"),
        (format_metric("accuracy", 0.9312), "93.12 %"),
        (format_metric("log_loss", math.nan), "not finite"),
        (format_change("accuracy", -0.002), "−0.2 points"),
        (format_change("accuracy", 0.01), "+1 point"),
        (format_change("accuracy", 1e-7), "±0 points"),
        (format_change("rmse", 0.1), "−0.10"),
        (format_apart(0.0563, 0.0561, format_ms), ("56.3 µs", "56.1 µs")),
        (format_apart(0.0563, 0.0563, format_ms), ("56.3 µs", "56.3 µs")),
    ],
)
def test_figures_read_well(shown: Any, expected: Any) -> None:
    assert shown == expected


# Schemes that do not pay


def test_a_scheme_that_ruins_the_accuracy_is_rejected_whatever_it_gains() -> None:
    ruined = artifact("ruined", accuracy=0.10, size=1_000, ms=0.001, ms_64=0.01)
    modest = artifact("modest", accuracy=0.929, size=300_000, ms=0.050)
    for pick, expected in (("smallest", "modest"), ("fastest", "modest"), ("most_accurate", "dense")):
        selection = choose(ruined, modest, pick=pick)
        assert selection.selected == expected
        by_name = {each.name: each for each in selection.artifacts}
        assert not by_name["ruined"].fits_budget
        assert "out of budget: accuracy drops by 83 points, 0.5 points allowed" in by_name["ruined"].verdict
    alone = choose(ruined)
    assert (alone.selected, alone.warnings) == ("dense", ("nothing but the dense model fits the budget",))


@pytest.mark.parametrize("ms", [0.0561, 0.06, 1.0])
def test_fastest_never_picks_what_is_slower_than_its_parent(ms: float) -> None:
    slower = artifact("int8", ms=ms, ms_64=0.1, size=1_000)
    selection = choose(slower, pick="fastest")
    assert selection.selected == "dense"
    pruned = artifact("pruned", ms=0.030, size=200_000)
    child = artifact("pruned-int8", "pruned", ms=0.0301, size=50_000)  # faster than the dense one, not than its parent
    assert choose(pruned, child, pick="fastest").selected == "pruned"
    assert choose(pruned, child, pick="smallest").selected == "pruned-int8"


def timed(name: str, ms: float, low: float, high: float, parent: str = "dense") -> Artifact:
    """An artifact that is smaller, with the interval of its latency's ratio to the dense one's."""
    plain = artifact(name, parent, ms=ms, size=300_000, ms_64=1.9)
    ratio = Ratio(value=ms / 0.056, ci95=(low, high))
    latency = {
        key: value.model_copy(update={"against": {"dense": ratio}}) if key == "batch_1" else value
        for key, value in plain.measurement.latency_ms.items()
    }
    return plain.model_copy(update={"measurement": plain.measurement.model_copy(update={"latency_ms": latency})})


def test_differences_within_the_noise_are_about_as_fast() -> None:
    noisy = timed("noisy", 0.060, 0.95, 1.20)
    assert verdict_of("noisy", noisy) == "1.3× smaller, about as fast, accuracy ±0 points"
    tiny = timed("tiny", 0.0565, 1.005, 1.012)  # resolved by many runs, and of no consequence
    assert "about as fast" in verdict_of("tiny", tiny)
    assert "slower" not in verdict_of("tiny", tiny)
    slower = timed("slower", 0.060, 1.05, 1.09)
    assert "slower than its parent (batch 1: 60 µs against 56 µs)" in verdict_of("slower", slower)
    lucky = timed("lucky", 0.050, 0.80, 1.01)
    assert "faster" not in verdict_of("lucky", lucky)
    faster = timed("faster", 0.028, 0.48, 0.52)
    assert "2.0× faster" in verdict_of("faster", faster)


def test_saturation_is_said_with_both_figures() -> None:
    plain = artifact("int8", accuracy=0.91, size=100_000, delta=-0.001)
    exact = plain.measurement.metric.model_copy(update={"value": 0.93})
    saturated = plain.model_copy(update={"measurement": plain.measurement.model_copy(update={"metric_exact": exact})})
    assert "8-bit sums saturate on this processor: accuracy 91.00 %, 93.00 % without" in verdict_of("int8", saturated)
