"""What is told of a stage while it is performed."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs import Storage


def test_a_checkpoint_that_takes_longer_than_the_grace_time_is_warned_of_once() -> None:
    from jobs.layout import ParallelLayout
    from jobs.spec.train import Retry
    from orchestrator.stages import Stages

    told: list[dict[str, Any]] = []
    stages = Stages(
        storage=Storage(Path("unused")),
        code="",
        dataset=Path("unused"),
        group=lambda: pytest.fail("no worker is needed"),
        layouts=[ParallelLayout()],
        micro_batch=None,
        retry=Retry(grace_s=5.0),
        on_report=told.append,
        on_stage=lambda name, manifest, reused: None,
        should_stop=lambda: False,
    )
    listen = stages._heed_grace("train")
    for seconds in (1.0, 12.5, 13.0):
        listen({"event": "checkpoint", "label": "train", "step": 10, "seconds": seconds})
    (warning,) = (event for event in told if event["event"] == "warning")
    assert "12.5 s" in warning["message"]
    assert "5 s" in warning["message"]
