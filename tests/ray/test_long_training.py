"""Long trainings on three nodes: whatever is taken from them, they end with the losses of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import yaml

from cluster.local import LocalCluster
from jobs.storage import read_json
from orchestrator import JobSpec, run
from orchestrator.runs import read_lines

THRESHER = [sys.executable, "-m", "orchestrator.cli"]
TIMEOUT_S = 180
RUNTIMES = ["gang", pytest.param("ray_train", marks=pytest.mark.slow)]
SPEC = {
    "name": "long",
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64},
    },
    "model": {"name": "mlp", "args": {"hidden": [32, 16], "activation": "tanh", "dropout": 0.1}},
    # A constant rate: however long it is to go on, a training begins alike.
    "train": {"epochs": 40, "batch_size": 24, "checkpoint": {"every_steps": 150, "keep": 2}},
}
LONG_EPOCHS = 100
"""Of the elastic training, which is to outlast the start of a node."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, cpus_per_node=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> list[float]:
    """The losses of one worker, here, in the longest of the trainings."""
    storage = tmp_path_factory.mktemp("undisturbed")
    run(JobSpec.parse(SPEC).replace({"train.epochs": LONG_EPOCHS}), runs=storage)
    return losses(storage)


def check_losses(storage: Path, undisturbed: list[float], epochs: int = 40) -> None:
    found = losses(storage)
    assert len(found) == pytest.approx(len(undisturbed) * epochs / LONG_EPOCHS, abs=1)
    np.testing.assert_allclose(found, undisturbed[: len(found)], rtol=1e-4)


def write(folder: Path, resources: dict[str, Any]) -> Path:
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC | {"resources": resources}))
    return spec


def losses(storage: Path) -> list[float]:
    (history,) = storage.glob("stages/*/history.json")
    found: list[float] = read_json(history)["losses"]
    return found


def events(storage: Path) -> list[dict[str, Any]]:
    return [event for path in storage.glob("*/events.jsonl") for event in read_lines(path)]


def environment_of(cluster: LocalCluster) -> dict[str, str]:
    """Of a process that knows this cluster alone, whatever Ray this one is connected to."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | cluster.client_environment


class Driven:
    """A run on the cluster, in a process of its own, with verbs for what befalls it."""

    def __init__(self, cluster: LocalCluster, storage: Path, *words: str) -> None:
        self.cluster, self.storage = cluster, storage
        self.seen = len(events(storage))
        self.process = subprocess.Popen(
            [*THRESHER, *words, "--runs", str(storage), "--address", cluster.address],
            env=environment_of(cluster),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, happened: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first such event of this process."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            for event in events(self.storage)[self.seen :]:
                if happened(event):
                    return event
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.process.communicate()[1]}")
            time.sleep(0.02)
        raise AssertionError("it did not happen")

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda event: event["event"] == "step" and event["step"] >= step)

    def wait_for_restarts(self, count: int) -> None:
        """Until training goes on after so many losses."""
        self.wait_for(lambda event: event["event"] == "restart" and event["count"] >= count)
        lost = [event["event"] for event in events(self.storage)[self.seen :]].index("restart")
        self.seen += lost
        self.wait_for(lambda event: event["event"] == "step")

    def workers(self) -> list[psutil.Process]:
        """Processes at work, on nodes other than the head's."""
        found = []
        for node in self.cluster.nodes:
            if node:
                found += [psutil.Process(pid) for pid in self.cluster.processes(node)]
        return [process for process in found if "Member" in process.name() or "TrainWorker" in process.name()]

    def end(self) -> str:
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        assert "Traceback" not in errors, errors
        return errors

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def drive(cluster: LocalCluster) -> Iterator[Callable[..., Driven]]:
    driven: list[Driven] = []

    def start(storage: Path, *words: str) -> Driven:
        driven.append(Driven(cluster, storage, *words))
        return driven[-1]

    yield start
    for each in driven:
        each.close()
    while len(cluster.nodes) < 3:
        cluster.add_node()


def nothing_is_left(cluster: LocalCluster) -> None:
    """No worker, no actor and no placement group; Ray needs a moment for those of a driver that was killed."""
    deadline = time.monotonic() + 30
    while (found := census(cluster)) != ([], []) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == ([], [])


def census(cluster: LocalCluster) -> tuple[list[str], list[str]]:
    """Placement groups that exist, and actors that live."""
    groups = [
        group["placement_group_id"] for group in listed(cluster, "placement_groups") if group["state"] != "REMOVED"
    ]
    alive = [actor["class_name"] for actor in listed(cluster, "actors") if actor["state"] != "DEAD"]
    # What Ray keeps for itself: its names begin with an underscore; and the cleaner of a run of Ray Train whose driver
    # was killed, which fails to end itself (exit_actor is called in a thread, Ray 2.60). It holds nothing.
    return groups, [name for name in alive if not name.startswith("_") and name != "PlacementGroupCleaner"]


def listed(cluster: LocalCluster, kind: str) -> list[dict[str, Any]]:
    """What the cluster's state API knows of a kind. Over HTTP: this process is connected to another Ray."""
    headers = {"Authorization": f"Bearer {cluster.token_path.read_text(encoding='utf-8').strip()}"}
    answer = requests.get(f"{cluster.dashboard}/api/v0/{kind}?limit=1000", headers=headers, timeout=30)
    assert answer.ok, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_lost_worker_and_a_lost_node(cluster, drive, undisturbed, tmp_path, runtime):
    spec = write(tmp_path, {"workers": 2, "runtime": runtime})
    driven = drive(tmp_path, "run", str(spec), "--set", "layout.data=2", "--set", "layout.zero_stage=1")
    driven.wait_for_step(300)
    driven.workers()[0].kill()
    driven.wait_for_restarts(1)
    node = next(node for node in cluster.nodes if node and set(cluster.processes(node)) & pids(driven.workers()))
    cluster.kill_node(node)
    errors = driven.end()
    assert driven.process.returncode == 0, errors
    assert "a worker was lost" in errors
    check_losses(tmp_path, undisturbed)
    (report,) = tmp_path.glob("*/report.json")
    goodput = read_json(report)["goodput"]
    # Until Ray has noticed the loss of a node it may offer the place there once more.
    assert 2 <= len(goodput["restarts"]) <= 3
    assert goodput["restart_s"] > 0
    parts = ("queued_s", "startup_s", "productive_s", "checkpoint_s", "recompute_s", "restart_s")
    assert sum(goodput[part] for part in parts) <= goodput["wall_s"] * 1.01
    assert goodput["ettr"] == pytest.approx(goodput["productive_s"] / (goodput["wall_s"] - goodput["queued_s"]))
    nothing_is_left(cluster)


def pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_polite_end_a_killed_driver_and_a_damaged_checkpoint(cluster, drive, undisturbed, tmp_path, runtime):
    spec = write(tmp_path, {"workers": 2, "runtime": runtime})
    driven = drive(tmp_path, "run", str(spec), "--set", "layout.tensor=2")
    driven.wait_for_step(200)
    driven.process.send_signal(signal.SIGTERM)
    assert "thresher resume" in driven.end()
    assert driven.process.returncode == 130
    last = max(event["step"] for event in events(tmp_path) if event["event"] == "step")
    saved = newest_checkpoint(tmp_path)
    assert step_of(saved) >= last, "what was trained before the end is in a checkpoint, regular or not"
    assert step_of(saved) % 150 != 0
    (run_id,) = (path.parent.name for path in tmp_path.glob("*/spec.yaml"))

    driven = drive(tmp_path, "resume", run_id)
    resumed = driven.wait_for(lambda event: event["event"] == "resumed")
    assert resumed["step"] == step_of(saved)
    driven.wait_for(lambda event: event["event"] == "checkpoint" and event["step"] >= step_of(saved) + 300)
    driven.process.kill()
    driven.process.wait()
    nothing_is_left(cluster)
    damaged = newest_checkpoint(tmp_path)
    shard = next(damaged.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8] + b"\0" * 8)

    driven = drive(tmp_path, "resume", run_id)
    errors = driven.end()
    assert driven.process.returncode == 0, errors
    resumed = next(event for event in events(tmp_path)[driven.seen :] if event["event"] == "resumed")
    assert resumed["step"] < step_of(damaged)
    check_losses(tmp_path, undisturbed)
    nothing_is_left(cluster)


def newest_checkpoint(storage: Path) -> Path:
    return max(storage.glob("stages/*.partial/checkpoints/step-*"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def test_an_elastic_run_shrinks_with_the_cluster_and_grows_with_it(cluster, drive, undisturbed, tmp_path):
    spec = write(tmp_path, {"workers": [2, 4]})
    driven = drive(tmp_path, "run", str(spec), "--set", f"train.epochs={LONG_EPOCHS}")
    started = driven.wait_for(lambda event: event["event"] == "workers_started")
    assert started["workers"] == 3  # one a node
    driven.wait_for_step(200)
    lost = max(cluster.nodes)
    cluster.kill_node(lost)
    assert driven.wait_for(lambda event: event["event"] == "resize")["workers"] == 2
    cluster.add_node()
    driven.wait_for(lambda event: event["event"] == "resize" and event["workers"] == 3)
    errors = driven.end()
    assert driven.process.returncode == 0, errors
    check_losses(tmp_path, undisturbed, LONG_EPOCHS)
    (report,) = tmp_path.glob("*/report.json")
    causes = [restart["cause"] for restart in read_json(report)["goodput"]["restarts"]]
    assert any("grew to 3 workers" in cause for cause in causes)
    nothing_is_left(cluster)
