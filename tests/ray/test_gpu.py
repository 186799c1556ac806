"""The same job on an accelerator. Not run where there is none, and so never claimed."""

from pathlib import Path

import pytest

from orchestrator import JobSpec, run
from tests.ray.test_pipeline import DIGITS


@pytest.mark.gpu
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_runs_on_an_accelerator(tmp_path: Path, precision: str):
    spec = JobSpec.parse(DIGITS | {"search": None}).replace(
        {"resources.gpus_per_worker": 1, "train.precision": precision}
    )
    report = run(spec, runs=tmp_path)
    dense = next(a for a in report.artifacts if a.name == "dense")
    assert dense.measurement.metric.value > 0.8
