"""The controller on a real cluster: a job goes from submission to a registered model, on the nodes that were chosen."""

import json
import time

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


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_job_ends_with_a_registered_model(tmp_path, monkeypatch):
    with LocalCluster(nodes=3, cpus_per_node=1) as cluster, Store.open(f"sqlite:///{tmp_path}/thresher.db") as store:
        for name, value in cluster.client_environment.items():
            monkeypatch.setenv(name, value)
        assert cluster.dashboard is not None
        view = RayCluster(Dashboard(cluster.dashboard))
        nodes = {node.name for node in view.nodes()}
        assert len(nodes) == 3
        new = NewJob(name="tiny", project="default", spec=SPEC, spec_hash="5bec", demand=Demand.of(2, CPU=1))
        job, _ = store.submit_job(new)
        runs = tmp_path / "runs"
        controller = Controller(store, RayJobs(cluster.dashboard), view, runs, Policy())
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            controller.step()
            found = store.job(job.id)
            assert found is not None
            if found.state.terminal or found.state is JobState.RECOVERING:
                break
            time.sleep(0.5)
        assert found.state is JobState.SUCCEEDED, (found, RayJobs(cluster.dashboard).log(f"{job.id}-1"))
        assert found.attempt is not None
        assert found.attempt.submission_id == f"{job.id}-1"
        assert set(found.attempt.placement) < nodes
        (model,) = store.models("default", "tiny")
        assert (model.version, model.job_id, model.spec_hash) == (1, job.id, "5bec")
        assert model.measurement
        started = json.loads((runs / job.run_id / "events.jsonl").read_text().splitlines()[0])
        assert started["attempt"] == f"{job.id}-1"
