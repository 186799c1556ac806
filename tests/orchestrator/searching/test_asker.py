"""How a search is ended by who is told of its trials, and how a seat waits for what its trial shows."""

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from jobs.errors import Interrupted, JobFailed
from jobs.layout import ParallelLayout
from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.searching import seat
from orchestrator.searching.asker import Asker
from orchestrator.searching.search import run_search
from orchestrator.searching.seat import TrialActor
from orchestrator.searching.study import Study
from orchestrator.searching.task import SearchTask


def a_task(folder: Path, on_trial: Callable[[Trial], None] = lambda trial: None, **search: Any) -> SearchTask:
    space = {"model.args.activation": {"choice": ["relu", "gelu"]}}
    spec = JobSpec.parse(
        {
            "name": "small",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "mlp"},
            "search": {"trials": 12, "algorithm": "random", "space": space, **search},
        }
    )
    return SearchTask(
        base=spec,
        phase="train",
        storage=folder,
        dataset=folder,
        code="",
        layout=ParallelLayout(),
        evaluations=(1,),
        trained=(),
        folder=folder / "search",
        slots=1,
        on_trial=on_trial,
        on_event=lambda event: None,
    )


def outcome(config: dict[str, Any], state: Any) -> dict[str, Any]:
    values = {"metric": 0.5} if state == "completed" else {}
    trial = Trial(
        number=config["number"],
        phase="train",
        params=config["params"],
        state=state,
        cause="" if values else "diverged: the loss is nan",
        values=values,
        seconds=1.0,
    )
    return {"record": trial.model_dump_json()}


def test_an_end_that_is_asked_for_while_repetitions_are_told_holds_at_once(tmp_path: Path):
    told: list[Trial] = []
    base = a_task(tmp_path, told.append)
    task = replace(base, should_stop=lambda: len(told) == 4)
    asker = Asker(task, Study(task.base, "train", task.folder))
    for place in range(2):
        config = asker.suggest(str(place))
        if isinstance(config, dict):
            asker.on_trial_complete(str(place), outcome(config, "completed"))
    assert asker.suggest("last") == Searcher.FINISHED
    assert len(told) == 4, "two that were run, and two of the ten that only repeat them"


def failed_trials(task: SearchTask, count: int) -> None:
    asker = Asker(task, Study(task.base, "train", task.folder))
    for place in range(count):
        config = asker.suggest(str(place))
        assert isinstance(config, dict)
        asker.on_trial_complete(str(place), outcome(config, "failed"))


def test_an_end_after_the_last_trial_does_not_hide_that_all_have_failed(tmp_path: Path):
    task = a_task(tmp_path, trials=3)
    failed_trials(task, 3)
    with pytest.raises(JobFailed, match="none of the 3 trials completed: 3 × diverged: the loss is nan"):
        run_search(replace(task, should_stop=lambda: True))
    assert not task.folder.exists(), "the next attempt begins anew"


def test_an_end_before_the_last_trial_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = a_task(tmp_path, trials=3)
    failed_trials(task, 2)
    monkeypatch.setattr("orchestrator.searching.search._tune", lambda task, study: None)
    with pytest.raises(Interrupted, match="finished trials are kept"):
        run_search(replace(task, should_stop=lambda: True))
    assert len(Study(task.base, "train", task.folder).finished) == 2


def a_seat(thread: threading.Thread) -> TrialActor:
    actor = TrialActor.__new__(TrialActor)
    actor.epochs, actor.thread = queue.Queue(), thread
    return actor


def test_a_seat_waits_as_long_as_its_trial_lives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seat, "LOOK_S", 0.01)
    goes_on = threading.Event()
    actor = a_seat(threading.Thread(target=goes_on.wait, args=(30,), daemon=True))
    actor.thread.start()
    threading.Timer(0.1, actor.epochs.put, [{"metric": 0.5}]).start()
    assert actor._shown_next() == {"metric": 0.5}
    goes_on.set()
    actor.thread.join()
    actor.epochs.put({"trial": {}})
    assert actor._shown_next() == {"trial": {}}
    with pytest.raises(JobFailed, match="without a word"):
        actor._shown_next()
