"""The controller on a real cluster: a job goes from submission to a registered model, on the nodes that were chosen."""

import json
import sys
import time
from collections.abc import Callable

import pytest

from cluster.local import LocalCluster
from cluster.observe import Dashboard
from cluster.submit import RayJobs
from orchestrator.controller import Controller
from orchestrator.controller.view import RayCluster
from orchestrator.scheduling import Demand, Policy
from orchestrator.store import JobState, NewJob, Store

SPEC = {
    "name": "tiny",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "mlp"},
    "train": {"steps": 5, "batch_size": 64},
    "resources": {"workers": 2},
}
STRANGER = """
import time, ray
from ray.util.placement_group import placement_group
ray.init()
ray.get(placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD").ready())
time.sleep(600)
"""
"""Holds two of three nodes, as somebody who uses the cluster beside the queue."""


def wait_until(happened: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_job_waits_for_what_others_hold_and_ends_with_a_registered_model(tmp_path, monkeypatch):
    with LocalCluster(nodes=3, cpus_per_node=1) as cluster, Store.open(f"sqlite:///{tmp_path}/thresher.db") as store:
        for name, value in cluster.client_environment.items():
            monkeypatch.setenv(name, value)
        assert cluster.dashboard is not None
        view = RayCluster(Dashboard(cluster.dashboard))
        nodes = {node.name for node in view.nodes()}
        assert len(nodes) == 3
        jobs = RayJobs(cluster.dashboard)
        (tmp_path / "stranger").mkdir()
        (tmp_path / "stranger" / "hold.py").write_text(STRANGER)
        jobs.submit(f"exec {sys.executable} hold.py", "stranger", tmp_path / "stranger", {})
        wait_until(lambda: len(view.holdings()) == 2, 60)
        new = NewJob(name="tiny", project="default", spec=SPEC, spec_hash="5bec", demand=Demand.of(2, CPU=1))
        job, _ = store.submit_job(new)
        runs = tmp_path / "runs"
        controller = Controller(store, jobs, view, runs, Policy())
        for _ in range(3):
            controller.step()
        waits = store.job(job.id)
        assert waits is not None
        assert (waits.state, waits.attempt) == (JobState.QUEUED, None)
        assert waits.reason.startswith("waiting for 2 × 1 CPU: room for 1 now")
        held = {node: dict(taken) for node, taken in controller.taken().items() if taken}
        assert held == {holding.node: {"CPU": 1000} for holding in view.holdings()}
        jobs.ask_stop("stranger")
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            controller.step()
            found = store.job(job.id)
            assert found is not None
            if found.state.terminal or found.state is JobState.RECOVERING:
                break
            time.sleep(0.5)
        assert found.state is JobState.SUCCEEDED, (found, jobs.log(f"{job.id}-1"))
        assert found.attempt is not None
        assert found.attempt.submission_id == f"{job.id}-1"
        assert set(found.attempt.placement) < nodes
        (model,) = store.models("default", "tiny")
        assert (model.version, model.job_id, model.spec_hash) == (1, job.id, "5bec")
        assert model.measurement
        started = json.loads((runs / job.run_id / "events.jsonl").read_text().splitlines()[0])
        assert started["attempt"] == f"{job.id}-1"
