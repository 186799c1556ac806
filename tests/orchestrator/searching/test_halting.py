"""The rules that end trials early, asked directly: no Ray runs here."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs.records import Trial
from jobs.spec.search import Search
from orchestrator.searching.halting import bracket_of, halting, num_brackets

EPOCHS = 9


@dataclass(frozen=True)
class Seat:
    """What a rule sees of Tune's trial."""

    trial_id: str
    config: dict[str, Any] = field(hash=False)


def seat(number: int) -> Seat:
    return Seat(f"trial-{number}", {"number": number})


def search(scheduler: str, **more: Any) -> Search:
    space = {"train.optimizer.lr": {"uniform": [0.1, 0.2]}}
    return Search.model_validate({"scheduler": scheduler, "space": space, "trials": 100, **more})


def play(rule: Any, curve: list[float], number: int, again_from: int | None = None) -> int:
    """Shows a trial's curve; returns when it was stopped. `again_from`: its process dies there once."""
    trial = seat(number)
    rule.on_trial_add(None, trial)
    shown = list(range(1, len(curve) + 1))
    if again_from is not None:
        shown = [*range(1, again_from + 1), *shown]
    for place, epoch in enumerate(shown):
        if again_from is not None and place == again_from:
            rule.on_trial_error(None, trial)
            rule.on_trial_add(None, trial)
        result = {"epochs": epoch, "metric": curve[epoch - 1], "trained": epoch == EPOCHS}
        if rule.on_trial_result(None, trial, result) == "STOP":
            return epoch
    return len(curve)


def flat(value: float) -> list[float]:
    return [value] * EPOCHS


def finished(number: int, curve: list[float]) -> Trial:
    return Trial(number=number, phase="train", params={}, state="completed", values={}, curve=tuple(curve), seconds=1.0)


def test_hyperband_has_a_bracket_for_each_rung():
    assert [num_brackets(epochs, 1) for epochs in (1, 2, 3, 8, 9, 81)] == [1, 1, 2, 2, 3, 5]
    assert num_brackets(27, 3) == 3


def test_trials_are_shared_out_as_in_hyperband():
    brackets = 3
    found = Counter(bracket_of(number, brackets) for number in range(1300))
    weights = {0: 9.0, 1: 4.5, 2: 3.0}
    for bracket, weight in weights.items():
        assert found[bracket] / 1300 == pytest.approx(weight / 16.5, abs=0.01)
    assert {bracket_of(number, brackets) for number in range(8)} == {0, 1, 2}, "a short search knows each bracket"
    assert [bracket_of(n, 3, seed=1) for n in range(9)] != [bracket_of(n, 3, seed=2) for n in range(9)]


def test_each_bracket_first_stops_at_its_own_rung():
    rule = halting(search("hyperband"), direction="max", evaluations=EPOCHS)
    stops: dict[int, set[int]] = {}
    for number in range(60):  # ever worse, so that each trial is stopped at the first rung of its bracket
        stops.setdefault(bracket_of(number, 3), set()).add(play(rule, flat(1.0 - number / 100), number))
    # The first in each bracket has nobody to be compared with.
    assert stops == {0: {1, EPOCHS}, 1: {3, EPOCHS}, 2: {EPOCHS}}


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_grace_is_kept_and_a_whole_training_is_never_stopped(scheduler: str):
    rule = halting(search(scheduler, grace_epochs=3), direction="max", evaluations=EPOCHS)
    stops = [play(rule, flat(1.0 - number / 100), number) for number in range(30)]
    assert min(stops) == 3
    rule = halting(search(scheduler), direction="max", evaluations=EPOCHS)
    for number in range(30):
        falls_at_the_end = [1.0 + number / 100] * (EPOCHS - 1) + [-float(number)]
        assert play(rule, falls_at_the_end, number) == EPOCHS


def test_median_stops_what_is_worse_than_half_and_pauses_nothing():
    rule = halting(search("median", grace_epochs=2), direction="min", evaluations=EPOCHS)
    for number, value in enumerate([0.1, 0.2, 0.3]):
        assert play(rule, flat(value), number) == EPOCHS
    assert play(rule, flat(0.15), 3) == EPOCHS
    assert play(rule, flat(0.25), 4) == 2
    assert play(rule, [0.9, 0.1, *flat(0.1)[2:]], 5) == EPOCHS, "the best so far counts"
    assert play(rule, [math.nan] * 2, 6) == 2  # diverged by itself; the others' median is none the worse
    assert play(rule, flat(0.1), 7) == EPOCHS


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_retried_trial_is_judged_as_if_nothing_had_been(scheduler: str):
    curves = [flat((number * 37 % 20) / 20) for number in range(20)]
    calm = halting(search(scheduler), direction="max", evaluations=EPOCHS)
    stormy = halting(search(scheduler), direction="max", evaluations=EPOCHS)
    expected = [play(calm, curve, number) for number, curve in enumerate(curves)]
    found = []
    for number, curve in enumerate(curves):
        dies = 1 if expected[number] > 1 and number % 3 == 0 else None
        found.append(play(stormy, curve, number, again_from=dies))
    assert found == expected
    assert any(stop < EPOCHS for stop in expected)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_resumed_search_compares_with_the_trials_of_before(scheduler: str):
    curves = [flat((number * 37 % 20) / 20) for number in range(20)]
    whole = halting(search(scheduler), direction="max", evaluations=EPOCHS)
    stops = [play(whole, curve, number) for number, curve in enumerate(curves)]
    past = [finished(number, curves[number][: stops[number]]) for number in range(12)]
    resumed = halting(search(scheduler), direction="max", evaluations=EPOCHS, past=past)
    assert [play(resumed, curves[number], number) for number in range(12, 20)] == stops[12:]
    assert any(stop < EPOCHS for stop in stops[12:])


def test_without_a_rule_or_a_choice_nothing_is_stopped():
    for rule in (
        halting(search("none"), direction="max", evaluations=EPOCHS),
        halting(search("hyperband"), direction="max", evaluations=1),
        halting(search("asha", grace_epochs=EPOCHS), direction="max", evaluations=EPOCHS),
    ):
        assert [play(rule, flat(1.0 - number), number) for number in range(5)] == [EPOCHS] * 5
