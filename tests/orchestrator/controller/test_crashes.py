"""The controller's process dies before or after any of its effects: the next one converges, and nothing runs twice."""

import pytest

from orchestrator.controller import Controller
from orchestrator.scheduling import Demand, Policy
from orchestrator.store import JobState, NewJob
from tests.orchestrator.controller.plays import Killed, PlayedRay
from tests.orchestrator.store.new_store import new_store

WRITES = {"plan_attempt", "mark_submitted", "mark_alive", "mark_leaving", "end_attempt", "mark_lost"}
WRITES |= {"finish_job", "requeue_job", "set_reasons", "set_unreachable", "set_claim"}


class Mortal:
    """The store, until so many effects are done; the last of them is done or not, as `after` says."""

    def __init__(self, store, effects, after):
        self.store, self.effects, self.after = store, effects, after

    def __getattr__(self, name):
        method = getattr(self.store, name)
        if name not in WRITES:
            return method

        def call(*arguments, **options):
            if self.effects == 0 and not self.after:
                raise Killed
            result = method(*arguments, **options)
            if self.effects == 0:
                raise Killed
            self.effects -= 1
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("effects", range(7))
@pytest.mark.parametrize("story", ["fails", "cancelled", "head restarts"])
def test_whoever_takes_over_converges(tmp_path, story, effects, after):
    ray = PlayedRay(tmp_path)
    with new_store(tmp_path / "thresher.db") as store:
        spec = {"name": "digits", "retry": {"max_failures": 0}}
        new = NewJob(name="digits", project="default", spec=spec, spec_hash="5bec", demand=Demand.of(2, CPU=1))
        job, _ = store.submit_job(new)
        name = f"{job.id}-1"
        ray.write(job.run_id, {"event": "started", "attempt": name})
        controller = Controller(Mortal(store, effects, after), ray, ray, tmp_path, Policy(), "mortal")
        happened = False
        for _ in range(8):
            try:
                controller.step()
            except Killed:
                controller = Controller(store, ray, ray, tmp_path, Policy(), "mortal")  # its lease is taken up again
                continue
            if name in ray.running() and not happened:
                happened = True
                if story == "fails":
                    ray.write(job.run_id, {"event": "failed", "error": "TrainingDiverged", "message": "NaN"})
                    ray.end(name)
                elif story == "head restarts":
                    ray.restart_head()
                else:
                    store.request_cancel(job.id, "ada")
            if name in ray.stops and name in ray.running():
                ray.end(name, "STOPPED")
        found = store.job(job.id)
        wanted = {"fails": JobState.FAILED, "cancelled": JobState.CANCELLED, "head restarts": JobState.RECOVERING}
        assert found.state is wanted[story]
        assert not found.attempt.state.live
        assert ray.submitted == [name]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("effects", range(4))
def test_a_resumed_job_is_started_once(tmp_path, effects, after):
    """The controller dies at each step of its start, and the request is sent again each time."""
    ray = PlayedRay(tmp_path)
    with new_store(tmp_path / "thresher.db") as store:
        new = NewJob(name="digits", project="default", spec={"name": "digits"}, spec_hash="5bec",
                     demand=Demand.of(2, CPU=1))  # fmt: skip
        first, _ = store.submit_job(new)
        store.request_cancel(first.id, "ada")
        ray.write(first.run_id)
        (tmp_path / first.run_id / "spec.yaml").write_text("name: digits")
        asked = {store.request_resume(first.id, "ada", "key")[0].id}
        controller = Controller(Mortal(store, effects, after), ray, ray, tmp_path, Policy(), "mortal")
        died = 0
        for _ in range(6):
            try:
                controller.step()
            except Killed:
                died += 1
                controller = Controller(store, ray, ray, tmp_path, Policy(), "mortal")
            asked.add(store.request_resume(first.id, "ada", "key")[0].id)
        (job,) = asked
        assert died == 1
        assert ray.submitted == ray.running() == [f"{job}-1"]
        assert ray.entrypoints[f"{job}-1"].split()[4:6] == ["resume", first.run_id]
        assert len(store.attempts(job)) == 1
        assert store.job(job).state is JobState.RUNNING


def test_what_had_begun_under_a_head_that_is_gone_is_gone_on_with(tmp_path):
    """Ray's answer to the submission was lost, and then Ray itself; the driver had made its run by then."""
    ray = PlayedRay(tmp_path, lose_replies=1)
    with new_store(tmp_path / "thresher.db") as store:
        new = NewJob(name="digits", project="default", spec={"name": "digits"}, spec_hash="5bec",
                     demand=Demand.of(2, CPU=1))  # fmt: skip
        job, _ = store.submit_job(new)
        controller = Controller(store, ray, ray, tmp_path, Policy(), "one")
        controller.step()
        name = f"{job.id}-1"
        assert ray.entrypoints[name].split()[4:6] == ["run", "thresher-job.yaml"]
        ray.write(job.run_id)
        (tmp_path / job.run_id / "spec.yaml").write_text("name: digits")
        ray.restart_head()
        controller.step()
        assert ray.submitted == [name, name]
        assert ray.entrypoints[name].split()[4:6] == ["resume", job.run_id]
        assert store.job(job.id).attempt.number == 1
