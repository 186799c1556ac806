"""The reconcile loop over a real store and a played Ray."""

import pytest

from cluster.submit import STOP_GRACE_S
from orchestrator.controller import Controller
from orchestrator.scheduling import Demand, Policy
from orchestrator.service.controlling import POLICY
from orchestrator.store import JobState, NewJob, Store
from orchestrator.store.errors import LeaseLost
from tests.orchestrator.controller.plays import Killed, PlayedRay


class World:
    def __init__(self, folder):
        self.ray = PlayedRay(folder)
        self.store = Store.open(f"sqlite:///{folder}/thresher.db")
        self.folder = folder
        self.controller = self.another("first")

    def another(self, holder, policy=Policy()):
        return Controller(self.store, self.ray, self.ray, self.folder, policy, holder)

    def submit(self, **values):
        new = {"name": "digits", "project": "default", "spec": {"name": "digits"}, "spec_hash": "5bec"}
        return self.store.submit_job(NewJob(**new | {"demand": Demand.of(2, CPU=1)} | values))[0]

    def now(self, job):
        return self.store.job(job.id)

    def pass_seconds(self, seconds):
        """By the store's clock, the controller at work all the time: its lease is for 15 s."""
        for _ in range(seconds):
            self.store.database.clock = self.store.database.clock + 1000
            self.controller.step()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.store.close()


def started(world):
    job = world.submit()
    world.controller.step()
    world.controller.step()
    assert world.now(job).state is JobState.RUNNING
    return job


def test_a_job_is_submitted_under_its_run_id_and_runs(world):
    job = started(world)
    assert world.ray.submitted == [f"{job.id}-1"]
    assert f"run thresher-job.yaml --run-id {job.run_id} --address auto" in world.ray.entrypoints[f"{job.id}-1"]
    assert set(world.now(job).attempt.placement) == {"n1", "n2"}


def test_a_job_that_waits_says_why(world):
    started(world)
    second = world.submit()
    world.controller.step()
    assert "waiting for" in world.now(second).reason
    assert len(world.ray.submitted) == 1


def test_unreachable_is_not_failed(world):
    job = started(world)
    world.ray.away = True
    world.controller.step()
    assert (world.now(job).state, world.now(job).unreachable_since_ms is None) == (JobState.RUNNING, False)
    world.ray.away = False
    world.controller.step()
    assert world.now(job).unreachable_since_ms is None
    assert world.ray.submitted == [f"{job.id}-1"]


def test_a_lost_reply_is_no_second_submission(world):
    job = world.submit()
    world.ray.lose_replies = 1
    for _ in range(3):
        world.controller.step()
    assert world.ray.submitted == [f"{job.id}-1"]
    assert world.now(job).state is JobState.RUNNING


def test_who_takes_over_after_a_death_between_submission_and_its_record_adopts(world):
    job = world.submit()
    world.ray.die_after_submit = True
    with pytest.raises(Killed):
        world.controller.step()
    world.store.release_lease(world.controller._lease)
    world.another("second").step()
    assert world.ray.submitted == [f"{job.id}-1"]
    assert world.now(job).state is JobState.RUNNING


def test_a_head_that_starts_anew_means_lost_and_recovering(world):
    job = started(world)
    world.ray.restart_head()
    world.controller.step()
    found = world.now(job)
    assert (found.state, found.failures, found.attempt.state) == (JobState.RECOVERING, ("infrastructure",), "LOST")
    assert found.not_before_ms > world.store.now_ms()


def test_ray_says_failed_and_the_run_does_not_so_it_is_recovered(world):
    job = started(world)
    world.ray.end(f"{job.id}-1", message="the supervisor died")
    world.controller.step()
    assert world.now(job).state is JobState.RECOVERING


@pytest.mark.parametrize(("failures", "state"), [(0, JobState.FAILED), (1, JobState.RECOVERING)])
def test_the_runs_own_failure_uses_up_the_retries(world, failures, state):
    job = world.submit(spec={"name": "digits", "retry": {"max_failures": failures}})
    world.controller.step()
    name = f"{job.id}-1"
    failed = {"event": "failed", "error": "TrainingDiverged", "message": "NaN at step 7"}
    world.ray.write(job.run_id, {"event": "started", "attempt": name}, failed)
    world.ray.end(name)
    world.controller.step()
    assert world.now(job).state is state
    assert "NaN at step 7" in world.now(job).detail


def test_a_cancelled_job_holds_its_places_until_it_is_gone(world):
    job = started(world)
    second = world.submit()
    world.store.request_cancel(job.id, "ada")
    world.controller.step()
    assert world.ray.stops == [f"{job.id}-1"]
    assert world.now(job).state is JobState.CANCELLING
    assert world.now(second).attempt is None
    world.ray.end(f"{job.id}-1", "STOPPED")
    world.controller.step()
    assert world.now(job).state is JobState.CANCELLED
    assert world.now(second).attempt.submission_id == f"{second.id}-1"


def test_a_victim_that_uses_all_of_its_time_to_stop_keeps_the_claim(world):
    victim = started(world)
    world.store.release_lease(world.controller._lease)
    world.controller = world.another("as in the service", POLICY)
    urgent = world.submit(priority=10)
    world.controller.step()
    claim = world.now(urgent).claim
    assert set(claim) == {"n1", "n2"}
    world.pass_seconds(1)
    assert world.ray.stops == [f"{victim.id}-1"]
    # Ray kills it when its time is up, and takes some more until it says so.
    world.pass_seconds(STOP_GRACE_S + 10)
    assert world.now(urgent).claim == claim
    world.ray.end(f"{victim.id}-1", "STOPPED")
    world.controller.step()
    assert world.now(urgent).attempt.placement == claim
    assert (world.now(victim).state, world.now(victim).attempt.outcome) == (JobState.QUEUED, "preempted")


def test_a_time_limit_stops_and_fails(world):
    job = world.submit(limit_ms=1)
    for _ in range(3):
        world.controller.step()
    assert f"{job.id}-1" in world.ray.stops
    world.ray.end(f"{job.id}-1", "STOPPED")
    world.controller.step()
    assert (world.now(job).state, world.now(job).cause) == (JobState.FAILED, "time_limit")


def test_who_was_overtaken_neither_writes_nor_submits(world):
    world.controller.step()
    world.store.release_lease(world.controller._lease)
    world.another("second").step()
    job = world.submit()
    with pytest.raises(LeaseLost):
        world.controller.step()
    assert world.ray.submitted == []
    assert world.now(job).state is JobState.QUEUED


def test_a_spec_that_cannot_be_written_delays_its_job_alone(world):
    """As on a full disk: here a file lies where the folder is to be."""
    job = world.submit()
    blocked = world.folder / ".service" / "jobs" / job.run_id
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    world.controller.step()
    assert world.now(job).state is JobState.STARTING
    assert world.ray.submitted == []
    blocked.unlink()
    world.controller.step()
    assert world.ray.submitted == [f"{job.id}-1"]
