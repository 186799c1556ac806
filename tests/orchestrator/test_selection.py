"""Selection: the Pareto set against brute force, the budget, the choice, and the words."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.records import Artifact, Delta, Interval, Latency, Measurement, Ratio, Trial
from jobs.spec.compress import Budget
from orchestrator.selection import (
    Direction,
    best_compression,
    best_trials,
    fits,
    pareto_front,
    select,
    trial_front,
)
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

DENSE_ACCURACY = 0.93


def measurement(
    accuracy: float = DENSE_ACCURACY,
    *,
    size: int = 400_000,
    ms: float | None = 0.056,
    ms_64: float = 1.9,
    delta: float | None = None,
    half_width: float = 0.001,
    n: int = 5000,
    metric: str = "accuracy",
) -> Measurement:
    latency = {"batch_64": Latency(p50=ms_64, p90=ms_64 * 1.1, n=100)}
    if ms is not None:
        latency["batch_1"] = Latency(p50=ms, p90=ms * 1.1, n=1000)
    return Measurement(
        metric=Interval(name=metric, value=accuracy, ci95=(accuracy - 0.01, accuracy + 0.01), n=n, split="validation"),
        metric_delta=None if delta is None else Delta(value=delta, ci95=(delta - half_width, delta + half_width)),
        details={},
        bytes=size,
        bytes_zstd=size,
        params=size // 4,
        nonzero_params=size // 4,
        macs=1,
        latency_ms=latency,
        parity_max_abs_diff=0.0,
    )


def artifact(name: str, parent: str | None = "dense", test: float | None = None, **figures: Any) -> Artifact:
    if parent is not None:
        figures.setdefault("delta", figures.get("accuracy", DENSE_ACCURACY) - DENSE_ACCURACY)
    return Artifact(
        name=name,
        parent=parent,
        stage="dense" if parent is None else "quantize",
        recipe={},
        files=(),
        measurement=measurement(**figures),
        test_metric=None
        if test is None
        else Interval(name="accuracy", value=test, ci95=(test - 0.01, test + 0.01), n=5000, split="test"),
    )


DENSE = artifact("dense", None)


def choose(*others: Artifact, pick: Any = "smallest", budget: Budget | None = None, dense: Artifact = DENSE) -> Any:
    return select((dense, *others), dense="dense", budget=budget or Budget(), pick=pick, metric_direction="max")


def verdict_of(name: str, *others: Artifact, **options: Any) -> str:
    verdicts: dict[str, str] = {a.name: a.verdict for a in choose(*others, **options).artifacts}
    return verdicts[name]


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


# The words


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


# Trials


def trial(number: int, state: Any = "completed", violation: float = 0.0, **values: float) -> Trial:
    return Trial(
        number=number,
        phase="joint",
        params={},
        state=state,
        values=values,
        violation=violation,
        seconds=1.0,
    )


def test_best_trials_are_completed_ones_best_first() -> None:
    trials = [
        trial(4, metric=0.9),
        trial(1, metric=0.9),
        trial(2, metric=0.95),
        trial(3, "pruned", metric=0.99),
        trial(5, metric=math.nan),
        trial(6),
    ]
    assert [t.number for t in best_trials(trials, direction="max", count=2)] == [2, 1]
    assert [t.number for t in best_trials(trials, direction="min", count=9)] == [1, 4, 2]
    assert best_trials([], direction="max", count=3) == ()


@pytest.mark.parametrize(("pick", "expected"), [("smallest", 2), ("fastest", 3), ("most_accurate", 1)])
def test_best_compression_picks_among_those_within_the_budget(pick: Any, expected: int) -> None:
    trials = [
        trial(0, violation=0.01, metric=0.99, bytes=1, latency_ms=0.01),
        trial(1, metric=0.95, bytes=300, latency_ms=3.0),
        trial(2, metric=0.94, bytes=100, latency_ms=2.0),
        trial(3, violation=-0.1, metric=0.93, bytes=200, latency_ms=1.0),
        trial(4, "failed"),
        trial(5, violation=math.nan, metric=1.0, bytes=0, latency_ms=0.0),
    ]
    best = best_compression(trials, pick=pick, metric_direction="max")
    assert best is not None
    assert best.number == expected
    assert best_compression(trials[::-1], pick=pick, metric_direction="max") == best


def test_best_compression_falls_back_to_the_least_violation() -> None:
    trials = [
        trial(0, violation=0.2, metric=0.9, bytes=1),
        trial(1, violation=0.1, metric=0.8, bytes=9),
        trial(2, violation=0.1, metric=0.8, bytes=8),
    ]
    best = best_compression(trials, pick="smallest", metric_direction="max")
    assert best is not None
    assert best.number == 2
    assert best_compression([trial(0, "pruned")], pick="smallest", metric_direction="max") is None


def test_trial_front_is_ascending_and_of_completed_trials() -> None:
    trials = [
        trial(7, metric=0.95, bytes=300.0),
        trial(3, metric=0.94, bytes=100.0),
        trial(5, metric=0.93, bytes=200.0),
        trial(1, "pruned", metric=1.0, bytes=1.0),
        trial(9, metric=0.99),
    ]
    assert trial_front(trials, {"metric": "max", "bytes": "min"}) == (3, 7)


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
