"""The study's bookkeeping: each trial is told as what it was, and asked for as if nothing had been in between."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.study import Study, directions

SPACE = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.batch_size": {"int": [16, 64]},
    "model.args.activation": {"choice": ["relu", "tanh"]},
}


def spec(**search: Any) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "small",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "mlp"},
            "search": {"trials": 8, "space": SPACE, **search},
        }
    )


def told(number: int, params: dict[str, Any], state: str = "completed", **fields: Any) -> Trial:
    values = {"metric": 0.5 + number / 100, "latency_ms": 1.0, "bytes": 10.0} if state == "completed" else {}
    return Trial(
        number=number,
        phase="train",
        params=params,
        state=state,
        values=values,
        seconds=1.0,
        **fields,  # type: ignore[arg-type]
    )


def reopened(folder: Path, name: str = "small/train") -> optuna.Study:
    """As optuna-dashboard would open it."""
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))))


def test_each_trial_is_booked_as_what_it_was(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    for index, (state, cause) in enumerate(
        [("completed", ""), ("pruned", "stopped at rung 1"), ("failed", "the loss is nan"), ("completed", "")]
    ):
        number, params = study.ask(index)
        study.intermediate(number, 1, 0.3)
        study.tell(told(number, params, state, cause=cause, violation=0.25 if index == 3 else -1.0))
    trials = reopened(tmp_path).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    assert [t.user_attrs["cause"] for t in trials] == ["", "stopped at rung 1", "the loss is nan", ""]
    assert trials[0].value == 0.5
    assert trials[2].value is None
    assert reopened(tmp_path).best_trial.number == 0, "what breaks the budget is not the best, however good"


def test_values_lie_in_the_space(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    for index in range(12):
        number, params = study.ask(index)
        assert 1e-4 <= params["train.optimizer.lr"] <= 1e-1
        assert params["train.batch_size"] in range(16, 65)
        assert params["model.args.activation"] in ("relu", "tanh")
        study.tell(told(number, params))


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_a_resumed_study_asks_for_what_the_uninterrupted_one_would(tmp_path: Path, algorithm: str):
    def sequence(folder: Path, breaks: tuple[int, ...]) -> list[dict[str, Any]]:
        study, asked = Study(spec(algorithm=algorithm), "train", folder), []
        for index in range(14):
            if index in breaks:
                study = Study(spec(algorithm=algorithm), "train", folder)
            number, params = study.ask(index)
            study.tell(told(number, params))
            asked.append(params)
        return asked

    whole = sequence(tmp_path / "whole", ())
    assert sequence(tmp_path / "broken", (3, 11)) == whole
    assert len({p["train.optimizer.lr"] for p in whole}) == 14


def test_another_seed_asks_for_other_values(tmp_path: Path):
    first = Study(spec(seed=0), "train", tmp_path / "0").ask(0)[1]
    assert Study(spec(seed=0), "train", tmp_path / "again").ask(0)[1] == first
    assert Study(spec(seed=1), "train", tmp_path / "1").ask(0)[1] != first


def test_what_ran_when_the_driver_died_is_tried_again(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    study.tell(told(*study.ask(0)))
    _, lost = study.ask(1)
    again = Study(spec(), "train", tmp_path)
    number, params = again.ask(1)
    assert params == lost
    again.tell(told(number, params))
    states = [t.state for t in reopened(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


def test_a_grid_visits_each_point_once(tmp_path: Path):
    grid = spec(
        algorithm="grid",
        trials=100,
        space={"train.batch_size": {"choice": [16, 32, 64]}, "model.args.activation": {"choice": ["relu", "tanh"]}},
    )
    assert grid.search is not None
    assert grid.search.num_trials("train") == 6
    study = Study(grid, "train", tmp_path)
    seen = set()
    for index in range(6):
        number, params = study.ask(index)
        seen.add(tuple(params.values()))
        study.tell(told(number, params))
    assert len(seen) == 6


def test_training_keys_are_judged_by_the_metric_alone_and_files_by_what_is_asked_for():
    job = spec(objectives={"metric": "max", "bytes": "min"})
    assert directions(job, "train") == {"metric": "max"}
    assert directions(job, "compress") == {"metric": "max", "bytes": "min"}
