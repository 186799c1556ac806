"""What a search tells its caller while it runs, and how the caller ends it."""

from typing import Any

import pytest

from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator import SearchResult, StopSearch, TrialEpoch
from orchestrator.searching.watching import Watcher

SPEC = JobSpec.parse(
    {"name": "small", "data": {"source": {"kind": "builtin", "name": "digits"}}, "model": {"name": "mlp"}}
)


def a_trial(number: int, metric: float) -> Trial:
    return Trial(
        number=number, phase="train", params={"lr": 0.1}, state="completed", values={"metric": metric}, seconds=1.0
    )


def told(number: int, metric: float) -> dict[str, Any]:
    return {"event": "trial", "t": 5.0, "stage": "search", **a_trial(number, metric).to_json()}


def an_epoch(number: int) -> dict[str, Any]:
    figures = {"epoch": 1.0, "step": 9, "loss": None, "metric": 0.5}
    return {"event": "trial_epoch", "t": 1.0, "phase": "train", "trial": number, **figures}


def watching(**callbacks: Any) -> Watcher:
    watcher = Watcher(**callbacks)
    watcher.begin(SPEC, [a_trial(0, 0.7)])
    return watcher


def test_callbacks_get_records():
    trials: list[Trial] = []
    epochs: list[TrialEpoch] = []
    watcher = watching(on_trial=trials.append, on_epoch=epochs.append)
    watcher({"event": "trial_started", "trial": 1, "params": {"lr": 0.1}})
    watcher(an_epoch(1))
    watcher(told(1, 0.8))
    assert trials == [a_trial(1, 0.8)]
    assert (epochs[0].params, epochs[0].metric, epochs[0].step) == ({"lr": 0.1}, 0.5, 9)
    assert epochs[0].loss != epochs[0].loss  # NaN: it was not measured
    assert watcher.ended == ""


def test_the_condition_sees_what_earlier_attempts_found_too():
    seen: list[SearchResult] = []

    def enough(result: SearchResult) -> bool:
        seen.append(result)
        return len(result.trials) == 3

    watcher = watching(stop=enough)
    watcher(told(1, 0.6))
    assert watcher.ended == ""
    watcher(told(2, 0.9))
    assert watcher.ended == "the condition of its caller holds"
    assert [result.best.number if result.best else None for result in seen] == [0, 2]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(StopSearch, "a callback asked for it"), (StopSearch("good enough"), "good enough")],
)
def test_a_callback_ends_the_search_by_raising_or_returning(answer: Any, reason: str):
    def raising(trial: Trial) -> None:
        raise answer

    for callback in (raising, lambda trial: answer):
        watcher = watching(on_trial=callback)
        watcher(told(1, 0.8))
        assert watcher.ended == reason
        watcher.raise_error()


def test_an_error_of_a_callback_ends_the_search_and_is_raised_after_it():
    calls: list[int] = []

    def broken(trial: Trial) -> None:
        calls.append(trial.number)
        raise ZeroDivisionError("the caller's own")

    watcher = watching(on_trial=broken)
    watcher(told(1, 0.8))
    watcher(told(2, 0.8))
    assert calls == [1]
    assert watcher.ended == "a callback raised ZeroDivisionError"
    with pytest.raises(ZeroDivisionError, match="the caller's own"):
        watcher.raise_error()
