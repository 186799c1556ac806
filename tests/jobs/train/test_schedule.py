"""Learning-rate schedules, on numbers by hand and as properties."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec.train import Constant, Cosine, OneCycle, Schedule, StepDecay
from jobs.train.schedule import rate

SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.9])
SCHEDULES = st.one_of(
    st.builds(Constant, warmup=SHARES),
    st.builds(StepDecay, name=st.just("step"), warmup=SHARES, milestones=st.just((0.5, 0.75))),
    st.builds(Cosine, name=st.just("cosine"), warmup=SHARES, floor=st.sampled_from([0.0, 0.1])),
    st.builds(OneCycle, name=st.just("one_cycle"), warmup=SHARES.filter(bool)),
)


def curve(schedule: Schedule, total: int, peak: float = 1.0) -> list[float]:
    return [rate(schedule, peak, step, total) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1.0] * 8),
        (Constant(warmup=0.5), [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]),
        (StepDecay(name="step", milestones=(0.25, 0.5), gamma=0.1), [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        (
            Cosine(name="cosine"),
            [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)],
        ),
        (
            Cosine(name="cosine", floor=0.5, warmup=0.5),
            [0.2, 0.4, 0.6, 0.8, *(0.5 + 0.25 * (1 + math.cos(math.pi * step / 4)) for step in range(4))],
        ),
        (
            OneCycle(name="one_cycle", warmup=0.5, start_factor=0.1, end_factor=0.0),
            [
                *(0.1 + 0.9 * (1 - math.cos(math.pi * step / 5)) / 2 for step in range(1, 5)),
                *((1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)),
            ],
        ),
    ],
    ids=["constant", "warmup", "step", "cosine", "warm cosine", "one_cycle"],
)
def test_curves_by_hand(schedule: Schedule, expected: list[float]) -> None:
    assert curve(schedule, 8) == pytest.approx(expected)


@given(SCHEDULES, st.integers(1, 300), st.sampled_from([1e-4, 0.1, 3.0]))
@settings(max_examples=100, deadline=None)
def test_rates_are_positive_rise_to_the_peak_and_then_never_rise(schedule: Any, total: int, peak: float) -> None:
    rates = curve(schedule, total, peak)
    assert all(0.0 < value <= peak * (1 + 1e-12) for value in rates)
    warm = [step for step in range(total) if step / total < schedule.warmup]
    rising, falling = rates[: len(warm)], rates[len(warm) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if total >= 100 and schedule.name != "step":  # with fewer, or a milestone in the warm-up, the peak may be skipped
        assert max(rates) >= 0.99 * peak


@given(SCHEDULES, st.integers(2, 100))
@settings(max_examples=50, deadline=None)
def test_the_peak_is_only_a_factor(schedule: Any, total: int) -> None:
    ones = curve(schedule, total)
    assert curve(schedule, total, 0.3) == pytest.approx([0.3 * value for value in ones])


def test_a_cosine_ends_near_its_floor_and_one_cycle_near_nothing() -> None:
    assert curve(Cosine(name="cosine", floor=0.2), 1000)[-1] == pytest.approx(0.2, abs=1e-5)
    assert curve(OneCycle(name="one_cycle"), 1000)[-1] < 2e-4


def test_one_step_has_a_rate() -> None:
    assert curve(Constant(warmup=0.1), 1) == [0.5]
    assert curve(Cosine(name="cosine"), 1) == [1.0]
