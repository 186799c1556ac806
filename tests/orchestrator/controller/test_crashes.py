"""The controller's process dies before or after any of its effects: the next one converges, and nothing runs twice."""

import pytest

from orchestrator.controller import Controller
from orchestrator.scheduling import Demand, Policy
from orchestrator.store import JobState, NewJob, Store
from tests.orchestrator.controller.plays import Killed, PlayedRay

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
    with Store.open(f"sqlite:///{tmp_path}/thresher.db") as store:
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
