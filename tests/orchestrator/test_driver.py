"""Which worker group a job gets."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs.spec import JobSpec
from orchestrator import driver
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage

SPEC = {
    "name": "digits",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "mlp"},
    "train": {"epochs": 1},
}


class FakeGroup:
    """A group that notes what it is asked for."""

    size, queued_s = 2, 0.5

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options, self.stopped = arguments, options, 0

    def stop(self) -> None:
        self.stopped += 1


class FakeGang(FakeGroup):
    pass


class FakeTrainGroup(FakeGroup):
    pass


class FakeRun:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))


@pytest.mark.parametrize(("runtime", "kind"), [("gang", FakeGang), ("ray_train", FakeTrainGroup)])
def test_the_runtime_chooses_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str, kind: type):
    monkeypatch.setattr(driver, "Gang", FakeGang)
    monkeypatch.setattr(driver, "TrainGroup", FakeTrainGroup)
    spec = JobSpec.parse({**SPEC, "resources": {"workers": 2, "runtime": runtime}})
    run: Any = FakeRun()
    with ExitStack() as stack:
        workers = driver.Workers(run, spec, plan_job(spec, Storage.at(tmp_path)), stack)
        group: Any = workers.get()
        assert workers.get() is group
        assert type(group) is kind
        assert group.arguments == ([2], 1, 0)
        assert group.options["stall_timeout_s"] == spec.retry.stall_timeout_s
        assert [name for name, _ in run.events] == ["workers_started"]
        workers.release()
        assert group.stopped == 1
        assert workers.get() is not group
    assert workers.gang is not None
    assert workers.gang.stopped == 1  # type: ignore[union-attr]


def test_the_runtime_is_in_no_hash(tmp_path: Path):
    plans = [
        plan_job(JobSpec.parse({**SPEC, "resources": {"workers": 2, "runtime": runtime}}), Storage.at(tmp_path))
        for runtime in ("gang", "ray_train")
    ]
    assert plans[0].hashes == plans[1].hashes
