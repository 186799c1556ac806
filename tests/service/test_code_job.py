"""A model of the user's own, from a folder on their side through the service to a registered model, on a real Ray."""

import os
from pathlib import Path

import pytest

from cluster.local import LocalCluster
from jobs.spec import JobSpec
from orchestrator.client import Client
from tests.service.conftest import start

MODULE = """
from torch import nn

from own_parts.width import WIDTH


def build(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
"""


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_modules_travel_and_a_model_comes_back(tmp_path: Path):
    modules = tmp_path / "mine"
    (modules / "own_parts").mkdir(parents=True)
    (modules / "own.py").write_text(MODULE)
    (modules / "own_parts" / "__init__.py").write_text("")
    (modules / "own_parts" / "width.py").write_text("WIDTH = 24\n")
    spec = JobSpec.parse(
        {
            "name": "own",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "own:build"},
            "code": {"working_dir": str(modules)},
            "train": {"steps": 5, "batch_size": 64},
        }
    )
    with LocalCluster(nodes=1, cpus_per_node=1) as cluster:
        env = os.environ | cluster.client_environment
        process, said = start(
            tmp_path / "runs", tmp_path / "log", 0, "--ray", str(cluster.dashboard), env=env, api_only=False
        )
        try:
            with Client(said["url"], said["token"]) as client:
                job = client.submit(spec, key="once")
                (modules / "own.py").write_text("raise SystemExit('what was sent counts, not what is here now')")
                done = client.wait(job.id, timeout_s=200)
                assert done.state == "SUCCEEDED", (done, "".join(client.logs(job.id)))
                client.fetch_model("own", "1", project="default", folder=tmp_path / "got")
                (model,) = client.models(name="own")
        finally:
            process.terminate()
            process.wait(30)
    assert model.job == job.id
    assert (tmp_path / "got" / "model.onnx").is_file()
    kept = tmp_path / "runs" / ".service" / "jobs" / job.id / "code" / "own.py"
    assert kept.read_text() == MODULE
