"""Gangs of real Ray actors: what they run, how they die, and that nothing of them is left."""

import os
import signal
import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from cluster.connect import connect
from cluster.gang import Gang
from cluster.placement import bundles, release, reserve
from cluster.workers import run_work
from jobs.errors import JobFailed, SpecError, TrainingDiverged, WorkerLost
from jobs.train.mesh import warm_up
from tests.ray import gang_works
from tests.ray.running import SOON_S, RunningContract

pytestmark = pytest.mark.usefixtures("local_ray")


def held():
    """Placement groups that exist, and CPUs that somebody holds."""
    groups = [entry for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    return len(groups), ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)


def wait_until_nothing_is_held():
    # A few moments: the free resources that Ray tells are those of its last round of reports.
    deadline = time.monotonic() + SOON_S
    while held() != (0, 0.0) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held() == (0, 0.0)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    wait_until_nothing_is_held()


@pytest.fixture
def gang():
    with Gang(2) as gang:
        yield gang


@pytest.fixture(scope="class")
def shared(local_ray):
    with Gang(2) as gang:
        yield gang


class TestRunning(RunningContract):
    @pytest.fixture(autouse=True)
    def nothing_is_left(self):
        """The shared gang is there to stay."""

    def test_nothing_heavy_is_imported_unasked(self, shared):
        assert not run_work(shared, gang_works.describe, None)["torch"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("echo", [True, False])
def test_a_process_that_dies_is_a_lost_worker_at_once(gang, rank, echo, monkeypatch):
    monkeypatch.setattr("cluster.gang._SETTLE_S", 1.0)  # those that notice nothing are waited for so long, in vain
    session = gang.start(gang_works.exit_at, {"rank": rank, "echo": echo})
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=rf"worker {rank} on node \S+ \(process \d+\) was lost: "):
        session.result(60.0)
    assert time.monotonic() - start < SOON_S
    if rank == 0:
        # What it had reported before is not lost with it.
        assert session.next(0.0) == [{"last": "words"}]
    for ask in (session.done, lambda: session.next(0.0)):
        with pytest.raises(WorkerLost):
            ask()
    # The next work finds new members.
    assert run_work(gang, gang_works.noop, 1) == 1


def test_a_member_that_is_killed_is_a_lost_worker(gang):
    session = gang.start(gang_works.sleep, 60)
    assert session.next(0.2) == []
    ray.kill(gang._peers[1].handle)
    start = time.monotonic()
    with pytest.raises(WorkerLost, match="worker 1 "):
        session.next(60.0)
    assert time.monotonic() - start < SOON_S


def test_a_member_that_hangs_is_a_lost_worker():
    with Gang(2, silence_timeout_s=2.0) as gang:
        session = gang.start(gang_works.freeze, None)
        start = time.monotonic()
        with pytest.raises(WorkerLost, match=r"worker 1 .* has not answered for 2 s"):
            session.result(60.0)
        assert time.monotonic() - start < 2.0 + SOON_S


def test_run_work_goes_on_after_a_loss(gang, tmp_path):
    losses = []
    result = run_work(
        gang,
        gang_works.exit_once,
        str(tmp_path / "marker"),
        max_failures=1,
        on_restart=lambda error, failures: losses.append(failures),
    )
    assert result is True
    assert losses == [1]


def test_a_work_that_does_not_stop_is_killed(gang):
    process = run_work(gang, gang_works.describe, None)["pid"]
    session = gang.start(gang_works.sleep, 60)
    start = time.monotonic()
    session.stop(0.3)
    assert time.monotonic() - start < SOON_S
    with pytest.raises(WorkerLost, match="did not stop"):
        session.result(0.0)
    assert run_work(gang, gang_works.describe, None)["pid"] != process


def test_warm_up_runs_in_every_new_process_and_every_new_group():
    with Gang(2, warm_up=gang_works.remember) as gang:
        assert run_work(gang, gang_works.recall, None) == "0 of 2"
        port = run_work(gang, gang_works.describe, None)["seat"]["MASTER_PORT"]
        gang.rebuild()
        assert run_work(gang, gang_works.recall, None) == "0 of 2"
        assert run_work(gang, gang_works.describe, None)["seat"]["MASTER_PORT"] != port


def processes(gang, folder):
    """Process ids of the members, by rank."""
    folder.mkdir()
    run_work(gang, gang_works.sign, str(folder))
    return [int((folder / str(rank)).read_text()) for rank in range(gang.size)]


def lose(gang, rank):
    """One member dies at work, and the others notice."""
    with pytest.raises(WorkerLost):
        run_work(gang, gang_works.exit_at, {"rank": rank, "echo": True})


@pytest.mark.parametrize("lost", [0, 1])
def test_the_living_stay_when_a_member_is_replaced(gang, tmp_path, lost):
    before = processes(gang, tmp_path / "before")
    lose(gang, lost)
    gang.rebuild()
    after = processes(gang, tmp_path / "after")
    assert before[1 - lost] in after
    assert before[lost] not in after
    assert len(set(after)) == 2


def test_who_waits_for_one_that_has_failed_stays_too(tmp_path):
    with Gang((1, 2, 3), warm_up=warm_up) as gang:
        before = processes(gang, tmp_path / "before")
        with pytest.raises(WorkerLost, match="worker 2 "):
            run_work(gang, gang_works.wait_in_a_row, None)
        gang.rebuild()
        assert processes(gang, tmp_path / "after") == before[:2]


def test_a_member_that_makes_no_progress_is_replaced_and_the_others_stay(tmp_path):
    with Gang(2, stall_timeout_s=2.0) as gang:
        before = processes(gang, tmp_path / "before")
        with pytest.raises(WorkerLost, match=r"worker 1 .* no progress for 2 s"):
            run_work(gang, gang_works.stall, before[1])
        gang.rebuild()
        after = processes(gang, tmp_path / "after")
        assert before[0] in after
        assert before[1] not in after


class TestElastic:
    def test_it_takes_what_there_is_and_grows_when_there_is_more(self, tmp_path):
        taken = reserve(bundles(2, 1, 0), 10.0)
        sizes = []
        try:
            with Gang((1, 2, 4)) as gang:
                assert gang.size == 2
                before = processes(gang, tmp_path / "before")

                def on_report(report):
                    nonlocal taken
                    if taken is not None:
                        release(taken)
                        taken = None
                    if report["size"] == 4:
                        (tmp_path / "end").touch()

                result = run_work(
                    gang,
                    gang_works.count_until_told,
                    str(tmp_path),
                    on_report=on_report,
                    resizable=True,
                    on_resize=lambda size, seconds: sizes.append(size),
                )
                assert result == {"stopped": False, "size": 4}
                assert sizes == [4]
                assert set(before) < set(processes(gang, tmp_path / "after"))
        finally:
            if taken is not None:
                release(taken)

    def test_it_goes_on_with_fewer_at_once_and_grows_back(self, tmp_path):
        with Gang((1, 2, 4)) as gang:
            before = processes(gang, tmp_path / "before")
            assert len(before) == 4
            lose(gang, 3)
            start = time.monotonic()
            gang.rebuild()
            assert time.monotonic() - start < SOON_S
            assert gang.size == 2  # 3 is no size that it may have
            deadline = time.monotonic() + 30
            while not gang.can_grow() and time.monotonic() < deadline:
                time.sleep(0.1)
            gang.rebuild()
            after = processes(gang, tmp_path / "after")
            assert set(before[:3]) < set(after)
            assert len(after) == 4

    def test_below_its_smallest_size_it_waits_for_room(self, tmp_path):
        with Gang((2, 3)) as gang:
            before = processes(gang, tmp_path / "before")
            os.kill(before[1], signal.SIGKILL)
            lose(gang, 2)
            gang.rebuild()
            assert gang.size >= 2
            assert before[0] in processes(gang, tmp_path / "after")


@pytest.mark.parametrize(
    ("warm_up", "error"),
    [(gang_works.fail_to_warm_up, TrainingDiverged), (gang_works.die_warming_up, WorkerLost)],
)
def test_a_constructor_that_fails_leaves_nothing(warm_up, error):
    with pytest.raises(error):
        Gang(2, warm_up=warm_up)


def test_a_start_that_takes_too_long_leaves_nothing():
    start = time.monotonic()
    with pytest.raises(WorkerLost, match="0 of 1 workers started within 4 s"):
        Gang(1, warm_up=lambda context, request: time.sleep(60), startup_timeout_s=4.0)
    assert time.monotonic() - start < 4.0 + SOON_S


def test_stop_ends_the_processes_and_may_be_repeated():
    gang = Gang(1)
    process = run_work(gang, gang_works.describe, None)["pid"]
    assert is_alive(process)
    gang.stop()
    gang.stop()
    deadline = time.monotonic() + SOON_S
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(process)


def test_a_gang_that_can_never_fit_is_refused():
    with pytest.raises(SpecError, match=r"resources\.workers: 5 workers .* at most 4"):
        Gang(5)


def test_a_gang_that_does_not_fit_now_waits_and_gives_up():
    group = reserve(bundles(3, 1, 0), 10.0)
    try:
        with pytest.raises(JobFailed, match="no room for 2 workers"):
            Gang(2, startup_timeout_s=0.5)
    finally:
        release(group)
    Gang(2).stop()


def test_somebody_elses_placement_group_is_used_and_left():
    group = placement_group([{"CPU": 0.001}, {"CPU": 1}, {"CPU": 1}])
    try:
        with Gang(2, placement_group=group, first_bundle=1) as gang:
            assert run_work(gang, gang_works.noop, 5) == 5
        assert placement_group_table(group)["state"] == "CREATED"
    finally:
        remove_placement_group(group)


def test_a_gang_can_live_inside_another_actor():
    """As a trial of Ray Tune does: an actor in bundle 0 whose gang has the other bundles."""

    class Trial:
        def run(self):
            group = ray.util.get_current_placement_group()
            with Gang(2, placement_group=group, first_bundle=1) as gang:
                return run_work(gang, gang_works.describe, None)["seat"]["WORLD_SIZE"]

    group = placement_group([{"CPU": 0.001}, {"CPU": 1}, {"CPU": 1}])
    try:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
        trial = ray.remote(num_cpus=0.001)(Trial).options(scheduling_strategy=strategy).remote()
        assert ray.get(trial.run.remote(), timeout=60) == "2"
        assert placement_group_table(group)["state"] == "CREATED"
        ray.kill(trial)
    finally:
        remove_placement_group(group)


def test_a_connected_process_keeps_its_connection(local_ray):
    with connect(None) as connection:
        assert connection == local_ray
        assert connection.free()["CPU"] == 4.0
    assert ray.is_initialized()
