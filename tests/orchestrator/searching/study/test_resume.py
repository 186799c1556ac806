"""A search that was broken off asks for exactly what the uninterrupted one would have, whatever the algorithm."""

import json
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from jobs.errors import JobFailed
from jobs.spec import JobSpec
from orchestrator.searching.study import Study
from orchestrator.searching.study.book import JOURNAL, RECORDS
from tests.orchestrator.searching.study.planted import CONDITIONAL, SPACES, outcome, ran, reopened, spec, told

SET_TRIAL_STATE_VALUES, SET_TRIAL_SYSTEM_ATTR = 6, 9
"""Optuna's numbers of entries of a journal."""

CASES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in SPACES},
    **{
        f"{name}, two objectives": {"algorithm": name, "mode": "joint", "objectives": {"bytes": "min"}}
        for name in ("tpe", "gp", "nsga2")
    },
    **{f"{name}, conditions": {"algorithm": name, "space": CONDITIONAL} for name in ("random", "tpe", "grid", "qmc")},
}
TRIALS = 18
SLOW = {"gp": 12, "gp, two objectives": 11}
"""A Gaussian process takes half a second for what comes after ten random trials."""


def sequence(
    job: JobSpec, folder: Path, trials: int = TRIALS, *, closed: tuple[int, ...] = (), killed: tuple[int, ...] = ()
) -> list[Any]:
    """The values asked for, one trial at a time.

    The study is opened again before the trials in `closed`, and while those in `killed` run; between the two, a
    process was killed too while it drew values.
    """
    assert job.search is not None
    phase = job.search.phases()[0]
    study, values = Study(job, phase, folder), []
    for index in range(trials):
        if index in closed:
            study = Study(job, phase, folder)
        asked = study.ask()
        if asked is None:
            break
        if asked.repeated is None and index in killed:
            study.intermediate(asked.number, 1, outcome(asked.params)["metric"] - 0.1)
            study = Study(job, phase, folder)
            again = study.ask()
            assert again is not None
            assert (again.number, again.params, again.resumed) == (asked.number, asked.params, True)
        if asked.repeated is None:
            ran(study, asked, phase)
        values.append(asked.params)
    return values


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_search_asks_for_what_the_uninterrupted_one_would(tmp_path: Path, case: str):
    job = spec(**CASES[case])
    trials = SLOW.get(case, TRIALS)
    whole = sequence(job, tmp_path / "whole", trials)
    assert sequence(job, tmp_path / "broken", trials, closed=(3, 10), killed=(0, 7, 14)) == whole
    assert len(whole) == trials
    assert len({json.dumps(values) for values in whole}) >= trials // 3


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2", "qmc", "cmaes", "grid"])
def test_a_process_that_was_killed_while_it_drew_values_shifts_nothing(tmp_path: Path, algorithm: str):
    job = spec(algorithm=algorithm)
    whole = sequence(job, tmp_path / "whole")
    study = Study(job, "train", tmp_path / "broken")
    asked = []
    for index in range(TRIALS):
        if index == 12:
            half = reopened(tmp_path / "broken").ask()  # made, and no more than its first value drawn
            if algorithm != "grid":
                half.suggest_float("train.optimizer.lr", 1e-4, 1e-1, log=True)
            study = Study(job, "train", tmp_path / "broken")
        trial = study.ask()
        assert trial is not None
        if trial.repeated is None:
            ran_as(study, trial, index)
        asked.append(trial.params)
    assert asked == whole
    broken = reopened(tmp_path / "broken").trials[12]
    assert (broken.state, broken.user_attrs["cause"][:22]) == (TrialState.FAIL, "the search broke off w")


def ran_as(study: Study, asked: Any, place: int) -> None:
    """What `ran` does, by the place: after a trial that was never handed out, numbers are one higher."""
    number = asked.number
    if place % 4 == 3:
        study.intermediate(number, 1, outcome(asked.params)["metric"] - 0.1)
        study.tell(told(asked, "pruned", cause="stopped at rung 1"))
    else:
        study.tell(told(asked))


def test_several_that_ran_are_run_again_in_their_order(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    before = [study.ask() for _ in range(3)]
    assert all(before)
    study.tell(told(before[1]))
    again = Study(spec(), "train", tmp_path)
    first, second, new = again.ask(), again.ask(), again.ask()
    assert first is not None
    assert second is not None
    assert new is not None
    assert [(t.number, t.params) for t in (first, second)] == [(t.number, t.params) for t in (before[0], before[2])]
    assert (new.number, new.resumed) == (3, False)
    assert [trial.number for trial in again.finished] == [1]


def test_a_record_without_its_telling_is_told_when_the_study_opens(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    asked = study.ask()
    assert asked is not None
    with (tmp_path / RECORDS).open("a") as file:  # as the process that was killed between the two had it
        file.write(json.dumps(told(asked).to_json()) + "\n")
    again = Study(spec(), "train", tmp_path)
    assert again.finished == [told(asked)]
    assert reopened(tmp_path).trials[0].state == TrialState.COMPLETE
    following = again.ask()
    assert following is not None
    assert following.number == 1


def test_a_record_that_was_lost_is_made_of_what_optuna_knows(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    for _ in range(4):
        asked = study.ask()
        assert asked is not None
        ran(study, asked)
    before = study.finished
    (tmp_path / RECORDS).write_text("")
    after = Study(spec(), "train", tmp_path).finished
    for field in ("number", "params", "state", "cause"):
        assert [getattr(t, field) for t in after] == [getattr(t, field) for t in before]
    assert [t.values.get("metric") for t in after] == [t.values.get("metric") for t in before]
    assert len(after[3].curve) == 1


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    asked = study.ask()
    assert asked is not None
    study.tell(told(asked))
    for name in (JOURNAL, RECORDS):
        with (tmp_path / name).open("a") as file:
            file.write('{"op_code": 4, "work')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)  # a killed process held Optuna's lock
    again = Study(spec(), "train", tmp_path)
    following = again.ask()
    assert following is not None
    again.tell(told(following))
    assert [trial.number for trial in Study(spec(), "train", tmp_path).finished] == [0, 1]
    assert len(reopened(tmp_path).trials) == 2


@pytest.mark.parametrize("damage", ["not JSON\n", '{"op_code": 99, "worker_id": "x"}\n{}\n', "[1, 2]\n", "\x00\x01\n"])
def test_a_damaged_journal_is_a_typed_error(tmp_path: Path, damage: str):
    study = Study(spec(), "train", tmp_path)
    assert study.ask() is not None
    text = (tmp_path / JOURNAL).read_text()
    (tmp_path / JOURNAL).write_text(damage + text)
    with pytest.raises(JobFailed, match="damaged"):
        Study(spec(), "train", tmp_path)


def test_records_of_another_search_are_refused(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    asked = study.ask()
    assert asked is not None
    study.tell(told(asked))
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(JobFailed, match="trial 0 has a record"):
        Study(spec(), "train", tmp_path)


def test_another_job_with_the_same_search_goes_on(tmp_path: Path):
    study = Study(spec(), "train", tmp_path)
    asked = study.ask()
    assert asked is not None
    study.tell(told(asked))
    renamed = spec().model_copy(update={"name": "another"})
    assert [trial.number for trial in Study(renamed, "train", tmp_path).finished] == [0]


def test_another_seed_asks_for_other_values(tmp_path: Path):
    for algorithm in ("tpe", "qmc", "cmaes"):
        asked = {}
        for name, seed in (("0", 0), ("again", 0), ("1", 1)):
            trial = Study(spec(algorithm=algorithm, seed=seed), "train", tmp_path / algorithm / name).ask()
            assert trial is not None
            asked[name] = trial.params
        assert asked["0"] == asked["again"]
        assert asked["0"] != asked["1"]


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2", "cmaes", "qmc"])
def test_nothing_in_the_journal_is_unpickled(tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch):
    """Of each trial a stranger has noted what Optuna's CMA-ES would load as its state."""
    job = spec(algorithm=algorithm)
    whole = sequence(job, tmp_path, 12)
    state = pickle.dumps(optuna.samplers.RandomSampler()).hex()
    lines = []
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        entry = json.loads(line)
        if entry["op_code"] == SET_TRIAL_STATE_VALUES:
            attr = {"cma:optimizer:0": state}
            lines.append(json.dumps(entry | {"op_code": SET_TRIAL_SYSTEM_ATTR, "system_attr": attr}))
        lines.append(line)
    (tmp_path / JOURNAL).write_text("\n".join(lines) + "\n")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickle, "loads", refuse)
    again = Study(job, "train", tmp_path)
    assert [trial.params for trial in again.finished] == whole
    assert again.ask() is not None
    if algorithm == "cmaes":
        theirs = reopened(tmp_path)
        theirs.sampler = optuna.samplers.CmaEsSampler()
        with pytest.raises(AssertionError, match="a pickle was loaded"):
            theirs.ask().suggest_float("train.optimizer.lr", 1e-4, 1e-1, log=True)
