"""The three ways in, as a user types them: here, on a running cluster, and through its Jobs API."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.storage import read_json
from tests.ray.conftest import Head, free_ports

THRESHER = [sys.executable, "-m", "orchestrator.cli"]
TIMEOUT_S = 240

FACTORY = """
from torch import nn

from mine.layers import block


def network(input_shape, outputs, width=8):
    channels, height, side = input_shape
    return nn.Sequential(block(channels, width), nn.Flatten(), nn.Linear(width * height * side, outputs))
"""
LAYERS = """
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())
"""


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {"source": {"kind": "builtin", "name": "digits"}, "split": {"calibration": 64}},
        "model": {"name": "mlp", "args": {"hidden": [16]}},
        "train": {"epochs": 1, "batch_size": 64},
        "compress": {"quantize": {"schemes": ["fp16"]}, "budget": {"max_metric_drop": 0.5}},
        **changes,
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: modules of their own, and a spec that uses them."""
    package = tmp_path / "project" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text(LAYERS)
    (package / "models.py").write_text(FACTORY)
    own = spec(name="own", model={"name": "mine.models:network", "args": {"width": 4}})
    (tmp_path / "project" / "own.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "project" / "small.yaml").write_text(yaml.safe_dump(spec()))
    required = spec(compress={"budget": {"max_bytes": 10, "required": True}})
    (tmp_path / "project" / "required.yaml").write_text(yaml.safe_dump(required))
    long = spec(train={"epochs": 5000, "batch_size": 64})
    (tmp_path / "project" / "long.yaml").write_text(yaml.safe_dump(long))
    return tmp_path / "project"


def thresher(
    *arguments: str, cwd: Path, head: Head | None = None, timeout: int = TIMEOUT_S
) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if head is not None:
        environment["RAY_AUTH_TOKEN"] = head.token
    return subprocess.run(
        [*THRESHER, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_a_model_of_the_users_own_runs_here(project: Path):
    done = thresher("run", "own.yaml", "--runs", "runs", cwd=project)
    assert done.returncode == 0, done.stderr
    run_dir = Path(done.stdout.strip().splitlines()[-1])
    assert read_json(run_dir / "report.json")["state"] == "succeeded"
    plan = read_json(run_dir / "plan.json")
    assert plan["model"]["layout_invariant"] is False
    card = run_dir / "artifacts" / "dense"
    shown = thresher("verify", str(card), "--json", cwd=project)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["ok"] is True
    # Another line of the user's code is another model: the training is not reused.
    (project / "mine" / "layers.py").write_text(LAYERS.replace("ReLU", "Tanh"))
    planned = json.loads(thresher("plan", "own.yaml", "--runs", "runs", "--json", cwd=project).stdout)
    assert {s["name"]: s["action"] for s in planned["stages"]}["train"] == "run"


def test_submit_streams_the_log_and_ends_with_the_jobs_exit_code(project: Path, ray_head: Head):
    done = thresher("submit", "own.yaml", "--ray", ray_head.url, "--runs", "runs", cwd=project, head=ray_head)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: epoch" in done.stdout
    run_dir = Path(done.stdout.strip().splitlines()[-1])
    assert run_dir.parent == project / "runs"
    assert read_json(run_dir / "report.json")["state"] == "succeeded"

    failed = thresher("submit", "required.yaml", "--ray", ray_head.url, "--runs", "runs", cwd=project, head=ray_head)
    assert failed.returncode == 1
    assert "no artifact fits the budget" in failed.stdout


def test_a_running_cluster_is_used_by_its_address(project: Path, ray_head: Head):
    done = thresher("run", "small.yaml", "--runs", "runs", "--address", ray_head.address, cwd=project, head=ray_head)
    assert done.returncode == 0, done.stderr


def test_a_submitted_job_is_watched_and_cancelled(project: Path, ray_head: Head):
    submitted = thresher("submit", "long.yaml", "--ray", ray_head.url, "--detach", "--json", cwd=project, head=ray_head)
    assert submitted.returncode == 0, submitted.stderr
    job_id = json.loads(submitted.stdout)["job_id"]
    deadline = time.monotonic() + 60
    while "train: epoch" not in thresher("logs", job_id, "--ray", ray_head.url, cwd=project, head=ray_head).stdout:
        assert time.monotonic() < deadline
    state = json.loads(thresher("status", job_id, "--ray", ray_head.url, "--json", cwd=project, head=ray_head).stdout)
    assert state["state"] == "RUNNING"
    cancelled = thresher("cancel", job_id, "--ray", ray_head.url, "--json", cwd=project, head=ray_head)
    assert json.loads(cancelled.stdout)["state"] == "STOPPED", cancelled.stderr
    followed = thresher("logs", "-f", job_id, "--ray", ray_head.url, cwd=project, head=ray_head)
    assert followed.returncode == 130
    assert "thresher resume" in followed.stdout
    unknown = thresher("status", "no-such-job", "--ray", ray_head.url, cwd=project, head=ray_head)
    assert unknown.returncode == 2


@pytest.mark.parametrize("command", [["submit", "small.yaml", "--ray"], ["run", "small.yaml", "--address"]])
def test_a_cluster_that_is_not_there_is_exit_code_3(project: Path, command: list[str]):
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}" if "--ray" in command else f"127.0.0.1:{port}"
    done = thresher(*command, address, cwd=project, timeout=60)
    assert done.returncode == 3, done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(project.glob("runs/*/spec.yaml"))
