"""The study's bookkeeping: each trial is told as what it was, and no sampler learns from half a result."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState

from jobs.records import Trial
from jobs.spec import JobSpec
from jobs.spec.dimension import Dimension
from orchestrator.searching.study import Asked, Study, directions
from tests.orchestrator.searching.study.planted import CONDITIONAL, outcome, ran, reopened, spec, told


def asked_of(study: Study) -> Asked:
    asked = study.ask()
    assert asked is not None
    return asked


PLANTED: list[tuple[str, dict[str, Any], TrialState, str]] = [
    ("completed", {}, TrialState.COMPLETE, ""),
    ("failed", {"cause": "the loss is nan at step 12"}, TrialState.FAIL, "the loss is nan at step 12"),
    ("failed", {"cause": "WorkerLost: exit code -11"}, TrialState.FAIL, "WorkerLost: exit code -11"),
    ("failed", {"cause": "out of memory"}, TrialState.FAIL, "out of memory"),
    ("pruned", {"cause": "stopped at rung 1"}, TrialState.PRUNED, "stopped at rung 1"),
    ("completed", {"values": {"latency_ms": 1.0}}, TrialState.FAIL, "no metric was measured"),
    ("completed", {"values": {"metric": math.nan}}, TrialState.FAIL, "metric is nan"),
    ("completed", {"values": {"metric": math.inf}}, TrialState.FAIL, "metric is inf"),
    ("completed", {"violation": math.nan}, TrialState.FAIL, "whether it keeps to the budget was not measured"),
    ("completed", {}, TrialState.COMPLETE, ""),
]


def test_each_trial_is_booked_as_what_it_was(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    booked = []
    for state, fields, _, _ in PLANTED:
        asked = asked_of(study)
        study.intermediate(asked.number, 1, 0.3)
        booked.append(study.tell(told(asked, state, **fields)))
    reopened(tmp_path).enqueue_trial(booked[0].params)
    duplicate = asked_of(study).repeated
    assert duplicate is not None
    booked.append(duplicate)
    trials = reopened(tmp_path).trials
    planted = [(state, cause) for *_, state, cause in PLANTED] + [(TrialState.COMPLETE, "same values as trial 0")]
    assert [(t.state, t.user_attrs["cause"]) for t in trials] == planted
    names = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    assert [(t.state, t.cause) for t in booked] == [(names[state], cause) for state, cause in planted]
    assert [t.params for t in trials] == [pytest.approx(t.params) for t in booked]
    for trial, record in zip(trials, booked, strict=True):
        assert trial.intermediate_values == ({} if record is duplicate else {1: 0.3})
        assert trial.values == ([record.values["metric"]] if record.state == "completed" else trial.values)
        assert record.values == {} or record.state == "completed"
        assert trial.values is None or trial.state != TrialState.FAIL
    assert study.finished == booked
    assert Study(spec(), "train", tmp_path).finished == booked


def test_objectives_are_told_in_their_order_and_a_missing_one_fails(tmp_path: Path):
    job = spec(mode="joint", objectives={"bytes": "min", "latency_ms": "min"})
    study = Study(job, "joint", tmp_path)
    assert list(study.objectives.items()) == [("metric", "max"), ("latency_ms", "min"), ("bytes", "min")]
    values = {"bytes": 30.0, "metric": 0.1, "latency_ms": 2.0}
    study.tell(told(asked_of(study), phase="joint", values=values, violation=-0.5))
    missing = study.tell(told(asked_of(study), phase="joint", values={"metric": 0.2, "latency_ms": 1.0}))
    stopped = asked_of(study)
    study.intermediate(stopped.number, 1, 0.4)
    study.tell(told(stopped, "pruned", phase="joint", cause="stopped at rung 1"))
    trials = reopened(tmp_path, "small/joint").trials
    assert trials[0].values == [0.1, 2.0, 30.0]
    assert trials[0].constraints == {"budget": -0.5}
    assert (trials[1].state, missing.state, missing.cause) == (TrialState.FAIL, "failed", "no bytes was measured")
    assert (trials[2].state, trials[2].values) == (TrialState.PRUNED, None)


def test_what_breaks_the_budget_is_not_the_best_however_good(tmp_path: Path):
    study = Study(spec(mode="joint"), "joint", tmp_path)
    for metric, violation in ((0.5, -1.0), (0.9, 0.25), (0.6, 0.0)):
        study.tell(told(asked_of(study), phase="joint", values={"metric": metric}, violation=violation))
    assert reopened(tmp_path, "small/joint").best_trial.number == 2


def test_a_phase_without_files_has_no_budget(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    study.tell(told(asked_of(study)))
    assert reopened(tmp_path).trials[0].constraints == {}


def test_a_trial_with_the_values_of_a_completed_one_is_not_run_again(tmp_path: Path):
    space = {"model.args.activation": {"choice": ["relu", "tanh"]}}
    job = spec(algorithm="random", trials=12, space=space)
    study = Study(job, "train", tmp_path)
    run, repeated = [], []
    while (asked := study.ask()) is not None:
        if asked.repeated is not None:
            repeated.append(asked.repeated)
        elif not run:
            run.append(study.tell(told(asked, "failed", cause="out of memory")))  # worth another attempt
        else:
            run.append(study.tell(told(asked, values={"metric": 0.25 * len(run)})))
    assert len(run) == 3
    assert len(run) + len(repeated) == 12
    for trial in repeated:
        first = next(other for other in run if other.params == trial.params and other.state == "completed")
        assert (trial.state, trial.cause) == ("completed", f"same values as trial {first.number}")
        assert (trial.values, trial.seconds, trial.steps) == (first.values, 0.0, 0)
    in_file = reopened(tmp_path).trials
    assert [t.state for t in in_file].count(TrialState.COMPLETE) == 11
    assert [t.user_attrs["cause"] for t in in_file if "same values" in t.user_attrs["cause"]] == [
        t.cause for t in repeated
    ]
    assert Study(job, "train", tmp_path).ask() is None


def asked_next(folder: Path, algorithm: str, state: str, began: float, value: float) -> dict[str, Any]:
    """What is asked after the first generation, or the random trials, of which the fourth began and ended like this."""
    study = Study(spec(algorithm=algorithm, trials=60), "train", folder)
    first = 10 if algorithm in ("tpe", "gp") else study.search.population("train") + 1
    for index in range(first):
        asked = asked_of(study)
        assert asked.repeated is None
        if index == 3:
            study.intermediate(asked.number, 1, began)
            values = {"metric": value} if state == "completed" else {}
            study.tell(told(asked, state, values=values, cause="" if values else "stopped at rung 1"))
        else:
            study.tell(told(asked))
    return asked_of(study).params


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "nsga2", "cmaes"])
def test_however_well_a_stopped_trial_began_the_sampler_does_not_follow_it(tmp_path: Path, algorithm: str):
    well = asked_next(tmp_path / "well", algorithm, "pruned", 50.0, 0.0)
    badly = asked_next(tmp_path / "badly", algorithm, "pruned", -50.0, 0.0)
    assert well == badly
    assert well != asked_next(tmp_path / "completed", algorithm, "completed", 50.0, 50.0), "it would have learnt"


def test_the_sampler_ranks_stopped_trials_behind_all_completed_ones(tmp_path: Path):
    """TPE's good share: completed trials alone, as long as there are enough, however well a stopped one began."""
    study = Study(spec(trials=40), "train", tmp_path)
    for index in range(30):
        asked = asked_of(study)
        if index % 2:
            study.intermediate(asked.number, 1, 5.0 + index)  # better than any
            study.tell(told(asked, "pruned", cause="stopped at rung 1"))
        else:
            study.tell(told(asked))
    seen = reopened(tmp_path)
    good, bad = _split_trials(seen, seen.trials, 3)  # what TPE takes of 30 trials: a tenth
    assert [t.state for t in good] == [TrialState.COMPLETE] * 3
    assert sum(t.state == TrialState.PRUNED for t in bad) == 15
    assert seen.best_trial.state == TrialState.COMPLETE
    assert seen.best_trial.value == max(t.values["metric"] for t in study.finished if t.state == "completed")


def test_a_failed_trial_has_no_place_in_a_generation(tmp_path: Path):
    generations = {}
    for metric in (0.1, math.nan):
        folder = tmp_path / str(metric)
        study = Study(spec(algorithm="cmaes"), "train", folder)
        size = study.search.population("train")
        for index in range(size + 2):
            asked = asked_of(study)
            study.tell(told(asked, **({"values": {"metric": metric}} if index == 2 else {})))
        generations[metric] = [t.user_attrs["generation"] for t in reopened(folder).trials]
    whole, failed = generations.values()
    assert whole == [0] * size + [1, 1]
    assert failed == [0] * (size + 1) + [1]


def test_values_lie_in_the_space_and_inactive_keys_are_left_out(tmp_path: Path):
    for algorithm in ("random", "tpe", "qmc"):
        study = Study(spec(algorithm=algorithm, space=CONDITIONAL, trials=18), "train", tmp_path / algorithm)
        kinds = set()
        while (asked := study.ask()) is not None:
            params = asked.params
            kinds.add(params["train.optimizer.name"])
            conditional = {"train.optimizer.momentum", "train.optimizer.nesterov"} & set(params)
            assert len(conditional) == (2 if params["train.optimizer.name"] == "sgd" else 0)
            assert params.get("train.optimizer.momentum", 0.5) in (0.5, 0.6, 0.7, 0.8, 0.9), "as one would write it"
            spec().replace(params)  # legal
            if asked.repeated is None:
                ran(study, asked)
        assert kinds == {"sgd", "adamw"}


def test_a_grid_visits_each_active_combination_once(tmp_path: Path):
    grid = spec(algorithm="grid", space=CONDITIONAL, trials=100)
    assert grid.search is not None
    assert grid.search.num_trials("train") == 5 * 2 * 2 + 2
    study = Study(grid, "train", tmp_path)
    seen = []
    while (asked := study.ask()) is not None:
        assert asked.repeated is None
        seen.append(asked.params)
        study.tell(told(asked))
    assert len(seen) == 22
    assert len({tuple(sorted((k, str(v)) for k, v in params.items())) for params in seen}) == 22


def test_a_grid_with_more_points_than_trials_is_sampled_evenly(tmp_path: Path):
    space = {"train.batch_size": {"int": [1, 40]}, "model.args.activation": {"choice": ["relu", "tanh"]}}
    study = Study(spec(algorithm="grid", space=space, trials=20), "train", tmp_path)
    points = [tuple(asked.params.values()) for asked in iter(study.ask, None) if study.tell(told(asked))]
    assert len(set(points)) == 20
    assert min(size for size, _ in points) < 10 < 30 < max(size for size, _ in points)


def test_a_grid_larger_than_any_machine_is_drawn_from_all_the_same(tmp_path: Path):
    steps = {"uniform": [0.001, 1.0], "step": 0.001}
    keys = ("train.optimizer.lr", "train.optimizer.eps", "train.optimizer.weight_decay", "train.gradient_clip")
    space = dict.fromkeys(keys, steps) | {f"model.args.{name}": steps for name in "abcd"}
    grid = spec(algorithm="grid", trials=5)
    assert grid.search is not None
    wide = grid.search.model_copy(update={"space": {key: Dimension.model_validate(steps) for key in space}})
    study = Study(grid.model_copy(update={"search": wide}), "train", tmp_path)
    points = [tuple(asked.params.values()) for asked in iter(study.ask, None) if study.tell(told(asked))]
    assert len(set(points)) == 5
    assert all(len(point) == 8 for point in points)


def test_a_trial_that_was_put_into_the_journal_by_hand_is_handed_out(tmp_path: Path):
    """Beside the search's own: neither takes the other's place."""
    study = Study(spec(algorithm="random", trials=4), "train", tmp_path)
    for _ in range(3):
        study.tell(told(asked_of(study)))
    by_hand = {"train.optimizer.lr": 0.05, "train.batch_size": 20, "model.args.activation": "tanh"}
    reopened(tmp_path).enqueue_trial(by_hand)
    asked = asked_of(study)
    assert by_hand.items() <= asked.params.items()
    study.tell(told(asked))
    assert study.ask() is None
    assert len(study.finished) == 4


def test_sobols_points_fill_the_space(tmp_path: Path):
    space = {
        "model.args.dropout": {"uniform": [0.0, 0.8]},
        "train.optimizer.lr": {"loguniform": [1e-4, 1.0]},
        "train.batch_size": {"int": [1, 8]},
        "model.args.activation": {"choice": ["relu", "tanh"]},
    }
    study = Study(spec(algorithm="qmc", space=space, trials=16), "train", tmp_path)
    points = [asked.params for asked in iter(study.ask, None) if study.tell(told(asked))]
    assert sorted(int(p["model.args.dropout"] / 0.05) for p in points) == list(range(16))
    assert sorted(int((math.log10(p["train.optimizer.lr"]) + 4) * 4) for p in points) == list(range(16))
    assert sorted(p["train.batch_size"] for p in points) == sorted([*range(1, 9)] * 2)
    assert [p["model.args.activation"] for p in points].count("relu") == 8


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "nsga2", "cmaes"])
def test_an_algorithm_that_learns_beats_chance_and_keeps_to_the_budget(tmp_path: Path, algorithm: str):
    """One peak at (0.7, 0.2); the budget cuts the best part of it off."""
    space = {"model.args.dropout": {"uniform": [0.0, 0.99]}, "train.label_smoothing": {"uniform": [0.0, 0.99]}}
    job = spec(algorithm=algorithm, mode="joint", trials=13 if algorithm == "gp" else 60, space=space)
    study = Study(job, "joint", tmp_path)
    found: list[Trial] = []
    while (asked := study.ask()) is not None:
        if asked.repeated is not None:
            found.append(asked.repeated)
            continue
        x, y = asked.params.values()
        values = {"metric": 1.0 - (x - 0.7) ** 2 - (y - 0.2) ** 2}
        found.append(study.tell(told(asked, phase="joint", values=values, violation=x - 0.6)))
    allowed = [t for t in found if t.violation <= 0]
    best = max(allowed, key=lambda t: t.values["metric"])
    assert best.values["metric"] > 0.98  # 0.99 is the most that the budget allows
    late = found[10:] if algorithm == "gp" else found[40:]
    assert sum(t.violation <= 0.0 for t in late) >= 0.6 * len(late)
    assert sum(t.values["metric"] for t in late) / len(late) > 0.75


def test_training_keys_are_judged_by_the_metric_alone_and_files_by_what_is_asked_for():
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}, "compress.prune.ratio": {"uniform": [0.2, 0.5]}}
    job: JobSpec = spec(space=space, objectives={"metric": "max", "bytes": "min"})
    assert directions(job, "train") == {"metric": "max"}
    assert directions(job, "compress") == {"metric": "max", "bytes": "min"}


def test_optunas_own_functions_read_the_file(tmp_path: Path):
    """What optuna-dashboard draws from."""
    study = Study(spec(trials=12), "train", tmp_path)
    while (asked := study.ask()) is not None:
        if asked.repeated is None:
            ran(study, asked)
    seen = reopened(tmp_path)
    importance = optuna.importance.get_param_importances(seen)
    assert set(importance) == set(study.space)
    summaries = optuna.get_all_study_summaries(seen._storage)
    assert [(s.study_name, s.n_trials) for s in summaries] == [("small/train", 12)]
    assert outcome(seen.best_params)["metric"] == pytest.approx(seen.best_value)
