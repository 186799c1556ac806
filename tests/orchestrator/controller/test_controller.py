"""The reconcile loop over a real store and a played Ray."""

import threading
import time

import pytest

from cluster.observe import Holding
from cluster.submit import STOP_GRACE_S
from jobs.errors import ClusterUnreachable
from orchestrator.controller import Controller
from orchestrator.scheduling import Demand, Policy
from orchestrator.service.controlling import POLICY
from orchestrator.store import JobState, NewJob
from orchestrator.store.errors import LeaseLost
from tests.orchestrator.controller.plays import Killed, PlayedRay
from tests.orchestrator.store.new_store import new_store


class World:
    def __init__(self, folder):
        self.ray = PlayedRay(folder)
        self.store = new_store(folder / "thresher.db")
        self.folder = folder
        self.controller = self.another("first")

    def another(self, holder, policy=None):
        return Controller(self.store, self.ray, self.ray, self.folder, policy or Policy(), holder)

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
    assert "head started anew (session-1 is now session-2)" in found.detail


def test_who_was_deleted_from_a_head_that_goes_on_is_lost_for_that_reason(world):
    job = started(world)
    del world.ray.jobs[f"{job.id}-1"]
    world.controller.step()
    found = world.now(job)
    assert (found.state, found.failures, found.attempt.state) == (JobState.RECOVERING, ("infrastructure",), "LOST")
    assert "deleted from the cluster, whose head is still the same" in found.detail


@pytest.mark.parametrize("happens", ["restart_head", "delete"])
def test_heads_that_are_lost_use_up_no_retries(world, happens):
    job = world.submit(spec={"name": "digits", "retry": {"max_failures": 0}})
    for _ in range(2):
        world.controller.step()
    if happens == "restart_head":
        world.ray.restart_head()
    else:
        world.ray.jobs.clear()
    world.controller.step()
    assert world.now(job).state is JobState.RECOVERING


def test_an_unknown_id_proves_nothing_while_the_cluster_does_not_say_who_it_is(world, monkeypatch):
    def nobody():
        raise ClusterUnreachable("no version")

    job = started(world)
    world.ray.restart_head()
    monkeypatch.setattr(world.ray, "identity", nobody)
    world.controller.step()
    assert (world.now(job).state, world.now(job).unreachable_since_ms is None) == (JobState.RUNNING, False)
    monkeypatch.undo()
    world.controller.step()
    assert world.now(job).state is JobState.RECOVERING


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


def test_a_wrong_spec_that_only_the_job_can_find_out_is_refused_and_not_tried_again(world):
    """Code of users is called there alone."""
    job = world.submit(spec={"name": "digits", "retry": {"max_failures": 5}})
    world.controller.step()
    failed = {"event": "failed", "error": "SpecError", "message": "model.name: mine:net failed: no such layer"}
    world.ray.write(job.run_id, {"event": "started", "attempt": f"{job.id}-1"}, failed)
    world.ray.end(f"{job.id}-1")
    world.controller.step()
    found = world.now(job)
    assert (found.state, found.cause) == (JobState.FAILED, "refused")
    assert found.detail == "SpecError: model.name: mine:net failed: no such layer"
    world.controller.step()
    assert len(world.ray.submitted) == 1


def test_one_request_asks_for_all_attempts_of_a_pass(world):
    jobs = [world.submit(demand=Demand.of(2, CPU=0.25)) for _ in range(4)]
    for _ in range(2):
        world.controller.step()
    world.ray.asked.clear()
    world.controller.step()
    assert dict(world.ray.asked) == {"states": 1}
    del world.ray.jobs[f"{jobs[0].id}-1"]
    world.ray.asked.clear()
    world.controller.step()
    assert dict(world.ray.asked) == {"states": 1, "status": 1}
    assert [world.now(job).state for job in jobs] == [JobState.RECOVERING, *[JobState.RUNNING] * 3]


def test_a_cluster_that_is_away_is_asked_once_a_pass(world):
    for _ in range(4):
        world.submit(demand=Demand.of(2, CPU=0.25))
    for _ in range(2):
        world.controller.step()
    world.ray.away = True
    world.ray.asked.clear()
    world.controller.step()
    assert dict(world.ray.asked) == {"states": 1}
    assert all(job.unreachable_since_ms is not None for job in world.store.live_jobs())


def half(world):
    """A job of half a node: with Ray's id of its driver, and its node."""
    job = world.submit(demand=Demand.of(1, CPU=0.5))
    for _ in range(2):
        world.controller.step()
    return job, world.ray.jobs[f"{job.id}-1"].ray_job, world.now(job).attempt.placement[0]


class TestWhatOthersHold:
    def test_nothing_is_started_where_others_are(self, world):
        world.ray.others = [Holding("77000000", "n1", {"CPU": 0.5})]
        job = world.submit()
        world.controller.step()
        assert world.now(job).state is JobState.QUEUED
        assert "waiting for" in world.now(job).reason
        assert world.controller.taken() == {"n1": {"CPU": 500}, "n2": {}}
        world.ray.others = []
        world.controller.step()
        assert world.ray.submitted == [f"{job.id}-1"]

    def test_what_an_attempt_holds_in_its_places_is_not_taken_twice(self, world):
        _, own, place = half(world)
        world.ray.others = [Holding(own, place, {"CPU": 0.5})]
        second = world.submit(demand=Demand.of(3, CPU=0.5))
        world.controller.step()
        assert world.controller.taken() == {"n1": {}, "n2": {}}
        assert f"{second.id}-1" in world.ray.submitted

    def test_what_it_holds_beyond_its_places_is_taken(self, world):
        _, own, place = half(world)
        world.ray.others = [Holding(own, place, {"CPU": 0.5}), Holding(own, place, {"CPU": 0.25})]
        second = world.submit(demand=Demand.of(3, CPU=0.5))
        world.controller.step()
        assert world.controller.taken()[place] == {"CPU": 250}
        assert world.now(second).attempt is None

    def test_what_ray_still_clears_away_of_an_ended_attempt_is_free(self, world):
        first = started(world)
        own = world.ray.jobs[f"{first.id}-1"].ray_job
        world.ray.others = [Holding(own, node, {"CPU": 1.0}) for node in ("n1", "n2")]
        second = world.submit()
        world.store.request_cancel(first.id, "ada")
        world.ray.end(f"{first.id}-1", "STOPPED")
        world.controller.step()
        assert f"{second.id}-1" in world.ray.submitted

    def test_a_driver_of_our_own_that_just_connected_is_no_stranger(self, world):
        """Between the look at the attempts and the look at what is held."""
        first, own, place = half(world)
        state = world.ray.jobs[f"{first.id}-1"]
        world.controller._ray_jobs.clear()
        state.ray_job = None
        second = world.submit(demand=Demand.of(3, CPU=0.5))

        def holdings():
            state.ray_job = own
            return [Holding(own, place, {"CPU": 0.5})]

        world.ray.holdings = holdings
        world.controller.step()
        assert world.controller.taken() == {"n1": {}, "n2": {}}
        assert f"{second.id}-1" in world.ray.submitted


def test_the_lease_has_an_age_where_it_is_held(world):
    assert world.controller.lease_age_s() is None
    world.controller.step()
    assert 0 <= world.controller.lease_age_s() < 5
    other = world.another("second")
    other.step()
    assert other.lease_age_s() is None


def test_a_submission_is_started_at_once(world, monkeypatch):
    """Not after a period: what is asked wakes the loop."""
    monkeypatch.setattr("orchestrator.controller.controller._PERIOD_S", 120.0)
    stop = threading.Event()
    thread = threading.Thread(target=world.controller.run, args=(stop,))
    thread.start()
    try:
        for _ in range(3):
            time.sleep(0.1)  # the loop sleeps
            job = world.submit(demand=Demand.of(2, CPU=0.125))
            deadline = time.monotonic() + 60
            world.controller.wake()
            while f"{job.id}-1" not in world.ray.submitted:
                assert time.monotonic() < deadline
                time.sleep(0.005)
    finally:
        stop.set()
        world.controller.wake()
        thread.join(30)


def test_a_trouble_that_lasts_is_logged_once_a_minute(world, caplog):
    def said():
        return [each.getMessage() for each in caplog.records].count("nothing is started: nobody answers")

    world.submit()
    world.ray.away = True
    for _ in range(5):
        world.controller.step()
    assert said() == 1
    world.ray.away = False
    world.controller.step()
    world.submit()
    world.ray.away = True
    world.controller.step()
    assert said() == 2
