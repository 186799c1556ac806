"""A driver that is killed in each stage, and a run that is completed all the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from jobs.storage import read_json
from orchestrator import JobSpec, run
from orchestrator.runs import read_lines

THRESHER = [sys.executable, "-m", "orchestrator.cli"]
TIMEOUT_S = 120

SPEC: dict[str, Any] = {
    "name": "killed",
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64},
    },
    "model": {"name": "lenet", "args": {"conv_widths": [8], "linear_widths": [32], "kernel": 3}},
    "train": {"epochs": 6, "batch_size": 32, "checkpoint": {"every_steps": 20}},
    "search": {"trials": 2, "space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-2]}}},
    "compress": {
        # Long: workers whose driver was killed train on for a second or two, until Ray ends them.
        "prune": {"recover": {"epochs": 250}},
        "quantize": {"schemes": ["fp16"]},
        "budget": {"max_metric_drop": 0.2},
    },
}

Event = dict[str, Any]


def started(stage: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "stage_started" and event["stage"] == stage


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "prepare": started("prepare"),
    "search": lambda event: event["event"] == "trial",
    "prune": started("prune"),
    "recovery": lambda event: event["event"] == "step" and event["label"].startswith("recover") and event["step"] > 25,
    "export": started("export/pruned"),
    "quantize": started("quantize/pruned-fp16"),
    "measure": started("measure"),
    "test": started("test"),
}


# All stages are performed, and left unfinished, in one way (tests/orchestrator/test_storage.py); what differs is here.
FEW = ["search", "recovery", "measure"]


def run_until(command: list[str], storage: Path, moment: Callable[[Event], bool], seen: int) -> bool:
    """Starts a command in a process group of its own and kills all of it at the moment. False: it ended before."""
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if any(moment(event) for event in events(storage)[seen:]):
                return True
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read()
                return False
            time.sleep(0.01)
        raise AssertionError(f"the moment has not come within {TIMEOUT_S} s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def events(storage: Path) -> list[Event]:
    return [event for path in storage.glob("*/events.jsonl") for event in read_lines(path)]


def complete_stages(storage: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (storage / "stages").glob("[0-9a-f]*/manifest.json")}


@pytest.mark.parametrize("moments", [FEW, pytest.param([*MOMENTS], marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_run_killed_in_each_stage_is_completed_and_nothing_is_done_twice(tmp_path: Path, moments: list[str]):
    spec, storage = tmp_path / "spec.yaml", tmp_path / "runs"
    spec.write_text(yaml.safe_dump(SPEC))
    command = [*THRESHER, "run", str(spec), "--runs", str(storage)]
    finished: dict[Path, int] = {}
    for name in moments:
        seen = len(events(storage))
        assert run_until(command, storage, MOMENTS[name], seen=seen), f"the run ended before {name}"
        assert finished.items() <= complete_stages(storage).items(), f"a finished stage was touched before {name}"
        finished = complete_stages(storage)
        (run_dir,) = (path.parent for path in storage.glob("*/spec.yaml"))
        command = [*THRESHER, "resume", run_dir.name, "--runs", str(storage)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert finished.items() <= complete_stages(storage).items()
    report = read_json(run_dir / "report.json")
    assert report["state"] == "succeeded"
    assert {a["name"] for a in report["artifacts"]} == {"dense", "dense-fp16", "pruned", "pruned-fp16"}
    assert len(report["search"]["trials"]) >= 2
    # A trial that was broken off and not asked for again leaves its partial folder, for `thresher clean`.
    assert not [path for path in storage.rglob("*.tmp") if ".partial" not in str(path)]
    assert "resumed" in {event["event"] for event in events(storage)}, "recovery began anew, not at its checkpoint"


def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_process(tmp_path: Path):
    spec, storage = tmp_path / "spec.yaml", tmp_path / "runs"
    spec.write_text(yaml.safe_dump(SPEC | {"search": None, "train": {"epochs": 500, "batch_size": 32}}))
    process = subprocess.Popen(
        [*THRESHER, "run", str(spec), "--runs", str(storage)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not any(event["event"] == "step" for event in events(storage)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "thresher resume" in errors
    assert "Traceback" not in errors
    assert processes_of_session(process.pid) == []


def processes_of_session(session: int) -> list[int]:
    """Living processes of a session, after a moment for the last ones to go."""
    for _ in range(50):
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(status.parent.name))
        if not found:
            return []
        time.sleep(0.2)
    return found


LONG: dict[str, Any] = {
    **SPEC,
    "model": {"name": "mlp", "args": {"hidden": [64, 32], "activation": "tanh", "dropout": 0.1}},
    "train": {"epochs": 20, "batch_size": 32, "checkpoint": {"every_steps": 50}, "schedule": "cosine"},
    "search": None,
    "compress": {},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> list[float]:
    """The losses of LONG in a pipeline of two, to which nothing happens."""
    storage = tmp_path_factory.mktemp("undisturbed")
    run(JobSpec.parse(LONG).replace({"layout": {"pipeline": 2}, "resources.workers": 2}), runs=storage)
    return losses(storage)


def losses(storage: Path) -> list[float]:
    (history,) = storage.glob("stages/*/history.json")
    found: list[float] = read_json(history)["losses"]
    return found


def test_a_killed_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    undisturbed: list[float], tmp_path: Path
):
    spec, storage = tmp_path / "spec.yaml", tmp_path / "runs"
    spec.write_text(yaml.safe_dump(LONG))
    # One worker takes these steps in a few tenths of a second: sixteen parts to each, so that it is seen at work.
    command = [*THRESHER, "run", str(spec), "--runs", str(storage), "--set=layout.micro_batch=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not any(event["event"] == "step" and event["step"] > 200 for event in events(storage)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    (worker,) = (
        child for child in psutil.Process(process.pid).children(recursive=True) if "ray::Member" in child.name()
    )
    worker.kill()
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "a worker was lost" in errors
    np.testing.assert_allclose(losses(storage), undisturbed, rtol=1e-4)
    (report,) = storage.glob("*/report.json")
    goodput = read_json(report)["goodput"]
    assert len(goodput["restarts"]) == 1
    assert goodput["restart_s"] > 0
    steps = [event for event in events(storage) if event["event"] == "step"]
    assert all(0 < event["step_s"] < 1 for event in steps)
    resumed = next(event for event in events(storage) if event["event"] == "resumed")
    newest = max(event["step"] for event in steps if event["t"] < resumed["t"])
    assert (goodput["recompute_s"] > 0) == (newest > resumed["step"])


@pytest.mark.slow  # the parts are shown apart: kills above, other layouts in tests/multiprocess/test_resume.py
def test_a_killed_run_goes_on_in_another_layout(undisturbed: list[float], tmp_path: Path):
    spec, storage = tmp_path / "spec.yaml", tmp_path / "runs"
    spec.write_text(yaml.safe_dump(LONG))

    def command(**layout: int) -> list[str]:
        assignments = [f"--set=layout.{axis}={degree}" for axis, degree in layout.items()]
        return [*THRESHER, "run", str(spec), "--runs", str(storage), "--set=resources.workers=2", *assignments]

    def passed(event: Event) -> bool:
        return event["event"] == "step" and event["step"] > 200

    assert run_until(command(data=2, zero_stage=2), storage, passed, seen=0)
    subprocess.run(command(tensor=2), check=True, capture_output=True, timeout=TIMEOUT_S)
    (resumed,) = (event for event in events(storage) if event["event"] == "resumed")
    assert resumed["step"] >= 150
    np.testing.assert_allclose(losses(storage), undisturbed, rtol=1e-4)
