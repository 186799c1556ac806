"""What a person sees while a run is under way."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.layout import ParallelLayout
from jobs.spec import JobSpec
from orchestrator.progress import LiveProgress, PlainProgress, describe, progress_on, standing
from orchestrator.searching.progress import SearchTally, kind_of_cause

EPOCH = {"event": "epoch", "label": "train", "step": 40, "total_steps": 100, "epoch": 2.0, "loss": 0.5, "metric": 0.9}
TRIAL = {"params": {"train.optimizer.lr": 0.01}, "curve": [0.7, 0.8], "epochs": 2, "cause": ""}
EVENTS: list[dict[str, Any]] = [
    {"event": "started", "run_id": "digits-1"},
    {"event": "prepared", "reused": False, "seconds": 1.0},
    {"event": "connecting", "address": None},
    {"event": "connected", "seconds": 3.0},
    {"event": "search_started", "stage": "search", "trials": 3, "direction": "max"},
    {"event": "trial_started", "trial": 0, "params": TRIAL["params"]},
    {"event": "trial_epoch", "trial": 0, "epoch": 1, "metric": 0.7},
    {"event": "trial", "number": 0, "state": "completed", "values": {"metric": 0.8}, **TRIAL},
    {"event": "trial", "number": 1, "state": "pruned", "values": {}, **TRIAL | {"cause": "stopped after 2 epochs"}},
    {"event": "trial", "number": 2, "state": "completed", "values": {"metric": 0.75}, **TRIAL},
]
LATER: list[dict[str, Any]] = [
    {"event": "stage", "stage": "search", "reused": False, "seconds": 9.0},
    {"event": "stage_started", "stage": "train"},
    {"event": "step", "label": "train", "step": 10, "total_steps": 100, "epoch": 0.5, "loss": 2.0, "metric": None},
    EPOCH,
    {"event": "protected", "layers": ["conv1.0"]},
    {"event": "restart", "stage": "train", "cause": "worker 0 was lost"},
    {"event": "resumed", "label": "train", "step": 20, "epochs": []},
    {"event": "failed", "error": "JobFailed"},
]


def test_plain_lines_tell_stages_epochs_trials_and_losses_of_workers():
    out = io.StringIO()
    progress = PlainProgress(out)
    for event in [*EVENTS, *LATER]:
        progress(event)
    text = out.getvalue()
    for expected in (
        "run digits-1",
        "prepare: 1",
        "search: 3 trials",
        "trial 0: completed, metric 0.8",
        "trial 1: pruned (stopped after 2 epochs)",
        "epoch 2, 40/100 steps, validation loss 0.5, metric 0.9",
        "costs the most there: conv1.0",
        "worker 0 was lost",
        "goes on from step 20",
        "failed: JobFailed",
    ):
        assert expected in text
    assert "step 10" not in text


def test_a_long_silence_is_broken_by_a_sign_of_life(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    progress = PlainProgress(out)
    progress.spoke -= 60
    progress({"event": "step", "label": "train", "step": 10, "total_steps": 100, "loss": 2.0})
    progress({"event": "step", "label": "train", "step": 20, "total_steps": 100, "loss": 1.0})
    assert out.getvalue().count("steps, loss") == 1


def test_a_terminal_shows_the_trials_and_the_best_so_far():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    progress = LiveProgress(console)
    for event in EVENTS:
        progress(event)
    with console.capture() as captured:
        console.print(progress._render())
    text = captured.get()
    assert "best 0.8" in text
    assert "3/3" in text
    assert "pruned" in text
    for event in LATER:
        progress(event)
    with console.capture() as captured:
        console.print(progress._render())
    assert "trial" not in captured.get()


SEARCH: list[dict[str, Any]] = [
    {"event": "search_started", "stage": "search", "trials": 8, "slots": 2, "direction": "min", "t": 0.0},
    *({"event": "trial_started", "trial": n, "params": {"lr": 0.1 * n}, "t": 0.0} for n in (0, 1)),
    {"event": "trial", "number": 0, "state": "completed", "values": {"metric": 0.4}, "seconds": 10.0, **TRIAL, "t": 10},
    {"event": "trial", "number": 1, "state": "failed", "values": {}, "seconds": 2.0, "t": 10}
    | TRIAL
    | {"cause": "the loss is nan at step 31"},
    {"event": "trial", "number": 2, "state": "failed", "values": {}, "seconds": 12.0, "t": 22}
    | TRIAL
    | {"cause": "the loss is nan at step 7", "curve": []},
    {"event": "trial", "number": 3, "state": "completed", "values": {"metric": 0.3}, "seconds": 8.0, **TRIAL, "t": 22},
    {"event": "trial_started", "trial": 4, "params": {}, "t": 20.0},
]


def tally() -> SearchTally:
    found = SearchTally()
    for event in SEARCH:
        found(event)
    return found


def test_a_search_is_added_up_with_its_best_its_causes_and_the_time_left():
    found = tally()
    assert (found.finished, found.total, found.best) == (4, 8, 3)  # smaller is better
    assert found.stops() == "2 failed (the loss is nan at step n)"
    # 8 s a trial on two slots: three are waiting, and the one that runs has 4 s left.
    assert found.left_s(24.0) == pytest.approx((3 * 8.0 + 4.0) / 2)
    assert SearchTally(total=4).left_s(0.0) is None
    assert standing(found, 24.0) == "4/8, best 0.3 (trial 3), about 14 s left"


def test_the_last_trial_alone_leaves_the_other_slots_empty():
    found = SearchTally(total=2, slots=2)
    found({"event": "trial", "number": 0, "state": "completed", "values": {"metric": 1.0}, "seconds": 10.0} | TRIAL)
    found({"event": "trial_started", "trial": 1, "params": {}, "t": 100.0})
    assert found.left_s(102.0) == pytest.approx(8.0)
    assert found.left_s(200.0) == 0.0


def test_trials_of_an_earlier_attempt_count():
    found = SearchTally()
    found(SEARCH[0] | {"done": [SEARCH[3], SEARCH[4]]})
    assert (found.finished, found.best) == (2, 0)
    assert describe(SEARCH[0] | {"done": [SEARCH[3]]}) == "search: 8 trials, 1 there already"


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("stopped by the scheduler after 2 epochs", "stopped by the scheduler after n epochs"),
        ("metric is -1.5e-7", "metric is n"),
        ("WorkerLost: worker 3\nTraceback", "WorkerLost: worker n"),
        ("layer conv1.0 is wide", "layer conv1.0 is wide"),
        ("", "no cause given"),
        ("x" * 99, "x" * 69 + "…"),
    ],
)
def test_causes_of_one_kind_count_together(cause: str, kind: str):
    assert kind_of_cause(cause) == kind


def test_plain_lines_of_trials_tell_the_standing_and_at_the_end_the_causes():
    out = io.StringIO()
    progress = PlainProgress(out)
    for event in [*SEARCH, {"event": "search_finished", "stage": "search", "seconds": 1.0}]:
        progress(event)
    lines = out.getvalue().splitlines()
    assert lines[1].endswith("[1/8, best 0.4 (trial 0), about 30 s left]")
    assert lines[-1].endswith("not completed: 2 failed (the loss is nan at step n)")


def test_a_long_training_prints_some_epochs_and_the_last_one(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("orchestrator.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = PlainProgress(out)
    for number in range(1, 151):  # 30 s
        now[0] += 0.2
        progress(EPOCH | {"epoch": number, "step": number, "total_steps": 150})
        progress(EPOCH | {"epoch": number, "step": number, "total_steps": 999, "label": "recover"})
    lines = [line for line in out.getvalue().splitlines() if "train: epoch" in line]
    assert 14 <= len(lines) <= 17
    assert "150/150 steps" in lines[-1]
    assert out.getvalue().count("recover: epoch") == len(lines) - 1


def test_a_terminal_shows_causes_and_keeps_the_best_in_sight():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    progress = LiveProgress(console)
    for event in SEARCH:
        progress(event)
    for number in range(5, 30):
        progress({"event": "trial_started", "trial": number, "params": {}, "t": 30.0})
    with console.capture() as captured:
        console.print(progress._render())
    text = captured.get()
    assert "best" in text
    assert "0.3" in text
    assert "not completed: 2 failed (the loss is nan at step n)" in text
    assert "left" in text
    assert text.count("running") == progress.ROWS - 1


def test_quiet_is_quiet():
    out = io.StringIO()
    with progress_on(out, quiet=True) as listener:
        for event in EVENTS:
            listener(event)
    assert out.getvalue() == ""


def test_a_live_display_does_not_get_in_the_way_of_tune(tmp_path: Path):
    """Tune pickles the searcher that it is given; a display holds locks, which can't be pickled."""
    from orchestrator.searching.asker import Asker
    from orchestrator.searching.study import Study
    from orchestrator.searching.task import SearchTask

    spec = JobSpec.parse(
        {
            "name": "small",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "mlp"},
            "search": {"space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-2]}}},
        }
    )
    live = LiveProgress(Console(file=io.StringIO()))
    task = SearchTask(
        base=spec,
        phase="train",
        storage=tmp_path,
        dataset=tmp_path,
        code="",
        layout=ParallelLayout(),
        evaluations=(1,),
        trained=(),
        folder=tmp_path,
        slots=1,
        on_trial=lambda trial: None,
        on_event=live,
    )
    assert pickle.dumps(Asker(task, Study(spec, "train", tmp_path)))
