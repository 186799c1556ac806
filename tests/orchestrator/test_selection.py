"""Selection: the Pareto set against brute force, the budget, the choice."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_artifacts import DENSE, artifact, choose, measurement, verdict_of

from jobs.records import Artifact
from jobs.spec.compress import Budget
from orchestrator.selection import (
    Direction,
    fits,
    pareto_front,
    select,
)

# Packs


def packed(**figures: Any) -> Artifact:
    return artifact("packed", **figures).model_copy(update={"stage": "pack"})


def test_a_pack_counts_by_the_bytes_of_its_archive() -> None:
    small = artifact("small", size=50_000)
    assert choose(small, packed(size=4_000)).selected == "packed"
    assert choose(small, packed(size=60_000)).selected == "small"


def test_a_pack_is_never_the_fastest() -> None:
    """It serves as the float model that it restores: a lower figure is noise."""
    assert choose(packed(size=4_000, ms=0.01), pick="fastest").selected == "dense"
    words = verdict_of("packed", packed(size=4_000, ms=0.01))
    assert "an archive" in words
    assert "faster" not in words
    assert "slower" not in verdict_of("packed", packed(size=4_000, ms=100.0))


# The Pareto front

figure = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))
clouds = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(("x", "y", "z")), figure),
    max_size=12,
)
directions = st.dictionaries(st.sampled_from(("x", "y", "z")), st.sampled_from(("min", "max")), min_size=1)


def dominates(left: dict[str, float], right: dict[str, float], ways: dict[str, Direction]) -> bool:
    signs = {name: -1 if way == "max" else 1 for name, way in ways.items()}
    return all(signs[k] * left[k] <= signs[k] * right[k] for k in ways) and any(left[k] != right[k] for k in ways)


@given(clouds, directions)
def test_front_is_what_brute_force_finds(points: dict[str, dict[str, float]], ways: dict[str, Direction]) -> None:
    whole = {
        name: values
        for name, values in points.items()
        if all(key in values and not math.isnan(values[key]) for key in ways)
    }
    expected = {
        name for name, values in whole.items() if not any(dominates(other, values, ways) for other in whole.values())
    }
    assert pareto_front(points, ways) == expected


@given(clouds, directions)
def test_front_ignores_the_order_of_points_and_directions(
    points: dict[str, dict[str, float]], ways: dict[str, Direction]
) -> None:
    turned = dict(reversed(points.items()))
    assert pareto_front(turned, dict(reversed(ways.items()))) == pareto_front(points, ways)


def test_equal_points_stay_together() -> None:
    assert pareto_front({"a": {"x": 1.0}, "b": {"x": 1.0}}, {"x": "min"}) == {"a", "b"}


# The budget


@pytest.mark.parametrize(
    ("figures", "budget", "words"),
    [
        ({"delta": -0.004}, Budget(), None),
        ({"delta": -0.012}, Budget(), "accuracy drops by 1.2 points, 0.5 points allowed"),
        ({"delta": -0.00504}, Budget(), "accuracy drops by 0.504 points, 0.5 points allowed"),
        ({"delta": -0.5}, Budget(max_metric_drop=None), None),
        ({"delta": math.nan}, Budget(), "was not measured"),
        ({"accuracy": math.nan, "delta": 0.0}, Budget(max_metric_drop=None), "accuracy is not finite"),
        ({"delta": 0.0, "ms": 0.06}, Budget(max_latency_ms=0.05), "batch 1 takes 60 µs, 50 µs allowed"),
        ({"delta": 0.0, "ms": None}, Budget(max_latency_ms=0.05), "latency at batch 1 was not measured"),
        ({"delta": 0.0, "size": 1001}, Budget(max_bytes=1000), "1.001 KB, 1.000 KB allowed"),
        ({"delta": 0.0, "size": 1000}, Budget(max_bytes=1000), None),
        ({"delta": -0.3, "metric": "rmse"}, Budget(max_metric_drop=0.1), "rmse rises by 0.30, 0.10 allowed"),
    ],
)
def test_fits_says_why_not(figures: dict[str, Any], budget: Budget, words: str | None) -> None:
    reasons = fits(measurement(**figures), DENSE.measurement, budget)
    assert (not reasons) if words is None else (len(reasons) == 1 and words in reasons[0])


def test_a_drop_of_exactly_the_budget_fits_in_spite_of_rounding() -> None:
    delta = 0.930 - 0.935
    assert -delta > 0.005
    assert fits(measurement(delta=delta), DENSE.measurement, Budget(max_metric_drop=0.005)) == []


def test_an_artifact_without_a_paired_difference_is_not_taken_for_the_dense_one() -> None:
    assert fits(measurement(0.9), DENSE.measurement, Budget()) != []
    assert fits(DENSE.measurement, DENSE.measurement, Budget(max_metric_drop=0.0)) == []


# The choice


@pytest.mark.parametrize(("pick", "expected"), [("smallest", "int8"), ("fastest", "pruned"), ("most_accurate", "fp16")])
def test_each_pick_looks_at_its_own_figure(pick: str, expected: str) -> None:
    chosen = choose(
        artifact("fp16", accuracy=0.931, size=200_000, ms=0.060),
        artifact("pruned", accuracy=0.928, size=120_000, ms=0.037),
        artifact("int8", "pruned", accuracy=0.927, size=40_000, ms=0.050),
        artifact("broken", accuracy=0.10, size=1000, ms=0.001),
        pick=pick,
    )
    assert chosen.selected == chosen.artifact.name == expected
    assert not chosen.warnings
    assert {a.name for a in chosen.artifacts if a.fits_budget} == {"dense", "fp16", "pruned", "int8"}


def test_fastest_never_takes_what_is_slower_than_its_own_parent() -> None:
    slow_dense = artifact("dense", None, ms=0.2)
    pruned = artifact("pruned", accuracy=0.80, ms=0.05)
    int8 = artifact("int8", "pruned", accuracy=0.929, ms=0.1, size=1000)
    chosen = choose(pruned, int8, pick="fastest", dense=slow_dense)
    assert chosen.selected == "dense"
    assert choose(pruned, int8, pick="smallest", dense=slow_dense).selected == "int8"


def test_nothing_but_dense_fits() -> None:
    chosen = choose(artifact("pruned", accuracy=0.5, size=10))
    assert chosen.selected == "dense"
    assert chosen.warnings == ("nothing but the dense model fits the budget",)


def test_nothing_fits_at_all() -> None:
    chosen = choose(artifact("pruned", accuracy=0.5, size=10), budget=Budget(max_bytes=100))
    assert chosen.selected == "dense"
    assert not chosen.artifact.fits_budget
    assert chosen.warnings[0].startswith("nothing fits the budget, so the dense model is kept")


def test_fastest_keeps_dense_with_a_warning_where_all_that_fits_is_slower() -> None:
    chosen = choose(
        artifact("int8", size=900, ms=0.09), pick="fastest", budget=Budget(max_bytes=1000, max_latency_ms=0.1)
    )
    assert chosen.selected == "dense"
    assert chosen.warnings[0].startswith("all that fits the budget is slower")


def test_a_run_of_one_artifact_selects_it_without_a_warning() -> None:
    chosen = choose()
    assert (chosen.selected, chosen.warnings) == ("dense", ())
    assert chosen.artifact.pareto


def test_ties_go_to_the_better_metric_then_to_the_name() -> None:
    assert choose(artifact("a", size=10), artifact("b", size=10, accuracy=0.931)).selected == "b"
    assert choose(artifact("b", size=10), artifact("a", size=10)).selected == "a"


def test_lower_is_better_for_errors() -> None:
    dense = artifact("dense", None, accuracy=1.0, metric="rmse")
    other = artifact("pruned", accuracy=0.9, metric="rmse", delta=0.1)
    chosen = select((dense, other), dense="dense", budget=Budget(), pick="most_accurate", metric_direction="min")
    assert chosen.selected == "pruned"
    assert "rmse −0.10" in chosen.artifact.verdict


def test_unknown_dense_and_double_names_are_refused() -> None:
    with pytest.raises(KeyError):
        select((DENSE,), dense="nope", budget=Budget(), pick="smallest", metric_direction="max")
    with pytest.raises(ValueError, match="share a name"):
        choose(artifact("a"), artifact("a"))


figures = st.fixed_dictionaries(
    {
        "accuracy": st.sampled_from((0.1, 0.92, 0.926, 0.93, 0.94)),
        "size": st.sampled_from((10, 1000, 400_000, 500_000)),
        "ms": st.sampled_from((None, 0.03, 0.056, 0.08)),
        "parent": st.sampled_from(("dense", "a0", "gone")),
    }
)
budgets = st.builds(
    Budget,
    max_metric_drop=st.sampled_from((None, 0.0, 0.005, 0.05)),
    max_latency_ms=st.sampled_from((None, 0.05)),
    max_bytes=st.sampled_from((None, 5000)),
)


@given(
    st.lists(figures, max_size=6),
    budgets,
    st.sampled_from(("smallest", "fastest", "most_accurate")),
    st.randoms(),
)
def test_the_selected_fits_or_is_dense_whatever_the_order(
    rows: list[dict[str, Any]], budget: Budget, pick: Any, random: Any
) -> None:
    artifacts = [DENSE, *(artifact(f"a{i}", **row) for i, row in enumerate(rows))]
    first = select(artifacts, dense="dense", budget=budget, pick=pick, metric_direction="max")
    shuffled = random.sample(artifacts, len(artifacts))
    second = select(shuffled, dense="dense", budget=budget, pick=pick, metric_direction="max")

    assert (first.selected, first.warnings) == (second.selected, second.warnings)
    assert {a.name: a for a in first.artifacts} == {a.name: a for a in second.artifacts}
    assert [a.name for a in first.artifacts] == [a.name for a in artifacts]

    chosen = first.artifact
    fitting = [a for a in first.artifacts if a.fits_budget]
    assert chosen.fits_budget or chosen.name == "dense"
    assert chosen.fits_budget or first.warnings
    if pick == "smallest" and fitting:
        assert chosen.measurement.bytes == min(a.measurement.bytes for a in fitting)
    if pick == "most_accurate" and fitting:
        assert chosen.measurement.metric.value == max(a.measurement.metric.value for a in fitting)
    if pick == "fastest" and chosen.name != "dense":
        assert chosen.measurement.latency_ms["batch_1"].p50 <= 0.056
