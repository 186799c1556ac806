"""Which trials of a search go on."""

import math
from typing import Any

import pytest

from jobs.records import Trial
from orchestrator.selection import (
    best_compression,
    best_trials,
    trial_front,
)


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
