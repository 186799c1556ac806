"""The worker group on Ray Train, held to what the gang is held to. One group serves all tests, in their order:

parity first, in fresh workers; then what any group must do; then the ways to break it, each of which costs a restart.
"""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from cluster.gang import Gang
from cluster.placement import bundles, release, reserve
from cluster.trainer import TrainGroup
from cluster.workers import run_work
from jobs.context import WorkRef
from jobs.errors import JobFailed, SpecError, WorkerLost
from jobs.layout import ParallelLayout
from jobs.storage import read_json
from tests.multiprocess.cells import TOLERANCE, dataset_of, request_of, spec_of
from tests.ray import gang_works
from tests.ray.running import SOON_S, RunningContract

WARM_UP = WorkRef("jobs.train.mesh:warm_up")
LAYOUTS = [ParallelLayout(data=2, zero_stage=2), ParallelLayout(tensor=2)]
SILENCE_S = 10.0  # a worker of a machine with much else to do may well not answer for 3 s
LONG = {"train.steps": 120, "train.checkpoint.every_steps": 50}
DIES_AT_BEAT = 190  # two a step: between the first checkpoint and the second
RAY_TRAINS = ("RayTrainWorker", "TrainController", "ray::Host", "PlacementGroupCleaner")


@pytest.fixture(scope="module")
def shared(local_ray):
    with TrainGroup(2, warm_up=WARM_UP, silence_timeout_s=SILENCE_S) as group:
        yield group


@pytest.fixture(scope="module")
def gangs_losses(local_ray, tmp_path_factory):
    """The losses of an undisturbed gang: of the short training in each layout, and of the long one."""
    folder = tmp_path_factory.mktemp("gang")
    with Gang(2, warm_up=WARM_UP) as gang:
        short = [losses(gang, layout, folder / str(number)) for number, layout in enumerate(LAYOUTS)]
        return [*short, losses(gang, LAYOUTS[0], folder / "long", LONG)]


def losses(group, layout: ParallelLayout, folder: Path, changes=None, doomed=False, **drive) -> np.ndarray:
    spec = spec_of("mlp", "sgd", folder, **(changes or {}))
    (folder / "training").mkdir(parents=True)
    request = request_of(spec, layout, dataset_of(spec, folder), folder / "training")
    if doomed:
        run_work(group, gang_works.train_and_die_once, (request, str(folder / "died"), DIES_AT_BEAT), **drive)
    else:
        run_work(group, WorkRef("jobs.train.work:train"), request, **drive)
    return np.array(read_json(folder / "training" / "history.json")["losses"])


def processes() -> list[str]:
    """What Ray Train has running, below this process."""
    names = [child.name() for child in psutil.Process().children(recursive=True) if child.is_running()]
    return [name for name in names if any(part in name for part in RAY_TRAINS)]


@pytest.mark.parametrize("number", [0, 1], ids=["data 2, ZeRO 2", "tensor 2"])
def test_the_losses_are_those_of_a_gang(gangs_losses, shared, tmp_path, number):
    found = losses(shared, LAYOUTS[number], tmp_path)
    np.testing.assert_allclose(found, gangs_losses[number], rtol=TOLERANCE)
    assert found[-1] < found[0]


def test_a_killed_worker_costs_a_restart_and_no_precision(gangs_losses, shared, tmp_path):
    run_work(shared, gang_works.sign, str(tmp_path))
    victim, causes, reports = int((tmp_path / "1").read_text()), [], []

    def on_restart(error, failures):
        causes.append(str(error))

    found = losses(
        shared,
        LAYOUTS[0],
        tmp_path / "run",
        LONG,
        doomed=True,
        on_report=reports.append,
        max_failures=1,
        on_restart=on_restart,
    )
    np.testing.assert_allclose(found, gangs_losses[2], rtol=TOLERANCE)
    (cause,) = causes
    assert [report["step"] for report in reports if report.get("event") == "resumed"] == [50]
    assert f"worker 1 on node {ray.util.get_node_ip_address()} (process {victim}) was lost: " in cause


class TestRunning(RunningContract):
    """In the group that was rebuilt."""


def test_a_process_that_dies_is_a_lost_worker_at_once(shared):
    session = shared.start(gang_works.exit_at, {"rank": 0, "echo": True})
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=r"worker 0 on node \S+ \(process \d+\) was lost: "):
        session.result(60.0)
    assert time.monotonic() - start < SOON_S
    assert session.next(0.0) == [{"last": "words"}]
    with pytest.raises(WorkerLost):
        session.done()


def test_a_worker_that_hangs_is_lost_and_can_be_ended_without_a_trace(shared):
    session = shared.start(gang_works.freeze, None)  # in new workers
    storage = Path(shared._fit.storage)
    assert storage.exists()
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=r"worker 1 .* has not answered for 10 s"):
        session.result(60.0)
    assert time.monotonic() - start < SILENCE_S + SOON_S
    session.stop(0.3)  # nobody stops by himself: the run of Ray Train is ended by force
    assert time.monotonic() - start < 120.0
    shared.stop()
    assert not storage.exists()
    deadline = time.monotonic() + 30
    while (processes() or held()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes()
    assert not held()


def held() -> float:
    groups = [entry for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    return len(groups) + ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)


@pytest.mark.usefixtures("local_ray")
class TestRefused:
    def test_what_can_never_fit(self):
        with pytest.raises(SpecError, match=r"resources\.workers: 5 workers .* at most 4"):
            TrainGroup(5)

    def test_what_does_not_fit_now(self):
        taken = reserve(bundles(3, 1, 0), 10.0)
        try:
            with pytest.raises(JobFailed, match="no room for 2 workers"):
                TrainGroup(2, startup_timeout_s=0.5)
        finally:
            release(taken)

    def test_several_sizes(self):
        with pytest.raises(ValueError, match="too many values"):
            TrainGroup((1, 2))
