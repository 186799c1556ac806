"""What a person sees while a run is under way."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.layout import ParallelLayout
from jobs.spec import JobSpec
from orchestrator.progress import LiveProgress, PlainProgress, progress_on

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


def test_quiet_is_quiet():
    out = io.StringIO()
    with progress_on(out, quiet=True) as listener:
        for event in EVENTS:
            listener(event)
    assert out.getvalue() == ""


def test_a_live_display_does_not_get_in_the_way_of_tune(tmp_path: Path):
    """Tune pickles the searcher that it is given; a display holds locks, which can't be pickled."""
    from orchestrator.search import SearchTask, _Asker
    from orchestrator.study import Study

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
        folder=tmp_path,
        slots=1,
        on_trial=lambda trial: None,
        on_event=live,
    )
    assert pickle.dumps(_Asker(task, Study(spec, "train", tmp_path)))
