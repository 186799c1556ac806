"""Which searched keys mattered."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from jobs.records import Trial
from jobs.spec.search import Search
from orchestrator.searching.importance import MOST_TRIALS, importance

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "model.args.dropout": {"uniform": [0.0, 0.5]},
    "model.args.activation": {"choice": ["relu", "gelu"]},
}


def trials(count: int, metric: Callable[[dict[str, Any]], float], *, state: Any = "completed") -> list[Trial]:
    draw = random.Random(3)
    found = []
    for number in range(count):
        params = {
            "train.optimizer.lr": 10 ** draw.uniform(-4, -1),
            "model.args.dropout": draw.uniform(0, 0.5),
            "model.args.activation": draw.choice(("relu", "gelu")),
        }
        values = {"metric": metric(params), "bytes": 100 * params["model.args.dropout"]} if state == "completed" else {}
        found.append(Trial(number=number, phase="joint", params=params, state=state, values=values, seconds=1.0))
    return found


def of(rows: list[Trial], objectives: tuple[str, ...] = ("metric",), space: dict[str, Any] = SPACE) -> dict[str, Any]:
    return importance(rows, Search.model_validate({"space": space}).space, objectives)


def test_the_key_that_decides_has_the_largest_share_of_its_objective():
    rows = trials(40, lambda p: float(p["model.args.activation"] == "gelu") + 0.1 * p["model.args.dropout"])
    found = of(rows, ("metric", "bytes"))
    assert found["trials"] == 40
    assert next(iter(found["shares"]["metric"])) == "model.args.activation"
    assert found["shares"]["metric"]["model.args.activation"] > 0.8
    assert found["shares"]["bytes"]["model.args.dropout"] > 0.8
    for shares in found["shares"].values():
        assert sum(shares.values()) == pytest.approx(1.0)
    assert of(rows, ("metric", "bytes")) == found  # the same each time


def test_fewer_than_four_completed_trials_say_nothing_and_others_do_not_count():
    rows = [*trials(3, lambda p: p["model.args.dropout"]), *trials(9, lambda p: 0.0, state="pruned")]
    found = of(rows)
    assert found["shares"] == {}
    assert found["note"] == "What mattered can't be said of 3 completed trials: it takes 4."


def test_keys_that_some_trial_lacks_or_that_never_changed_are_left_out():
    rows = [
        row.model_copy(update={"params": {k: v for k, v in row.params.items() if k != "model.args.dropout" or n > 2}})
        for n, row in enumerate(trials(8, lambda p: p["train.optimizer.lr"]))
    ]
    rows = [row.model_copy(update={"params": {**row.params, "model.args.activation": "relu"}}) for row in rows]
    found = of(rows)
    assert found["left_out"] == ["model.args.dropout", "model.args.activation"]
    assert found["shares"]["metric"] == {"train.optimizer.lr": pytest.approx(1.0)}


def test_equal_results_say_nothing():
    found = of(trials(6, lambda p: 0.5))
    assert (found["shares"], found["note"]) == (
        {},
        "What mattered can't be said: all completed trials came out the same.",
    )


def test_of_very_many_trials_an_even_choice_is_looked_at():
    found = of(trials(MOST_TRIALS * 2 + 1, lambda p: p["model.args.dropout"]))
    assert MOST_TRIALS // 2 < found["trials"] <= MOST_TRIALS
    assert next(iter(found["shares"]["metric"])) == "model.args.dropout"
