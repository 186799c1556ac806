"""Whose error is reported when members fail, die or fall silent, in whatever order the news arrives."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster import session as module
from cluster.member import Place, Pulse
from cluster.session import GangSession, Peer
from jobs.errors import JobFailed, TrainingDiverged, WorkerLost
from tests.cluster.worker_fakes import FakeMember, FakeRay


class Bench:
    """A session over two fake members."""

    def __init__(self):
        self.members = [FakeMember(), FakeMember()]
        self.abandoned = False
        peers = [Peer(rank, member, Place("n", "10.0.0.1", 7)) for rank, member in enumerate(self.members)]
        self.session = GangSession(
            peers, 1, None, None, silence_timeout_s=5.0, stall_timeout_s=60.0, abandon=self.abandon
        )

    def abandon(self):
        self.abandoned = True


@pytest.fixture
def fake_ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "time", fake)
    return fake


@pytest.fixture
def bench(fake_ray):
    return Bench()


def raised(error):
    return RayTaskError("run", "traceback", error, "worker", 1, "10.0.0.1")


def test_the_result_is_that_of_rank_0(bench):
    bench.members[1].finish(None)
    bench.members[0].finish("weights")
    assert bench.session.result(1.0) == "weights"
    assert bench.session.done()


def test_a_result_is_not_there_before_every_member_has_ended(bench):
    bench.members[0].finish("weights")
    with pytest.raises(TimeoutError):
        bench.session.result(2.0)


def test_reports_come_before_the_error(bench):
    bench.members[0].report({"step": 1})
    assert bench.session.next(1.0) == [{"step": 1}]
    for member in bench.members:
        member.fail(raised(TrainingDiverged("nan at step 2")))
    with pytest.raises(TrainingDiverged, match="nan at step 2"):
        bench.session.next(1.0)
    with pytest.raises(TrainingDiverged):
        bench.session.done()
    with pytest.raises(TrainingDiverged):
        bench.session.result(1.0)


def test_next_is_empty_when_nothing_comes(bench, fake_ray):
    before = fake_ray.now
    assert bench.session.next(3.0) == []
    assert fake_ray.now - before == pytest.approx(3.0, abs=0.01)


def test_a_death_is_reported_although_its_echo_came_first(bench):
    bench.members[0].fail(raised(JobFailed("worker 0: RuntimeError: connection closed by peer")))
    assert bench.session.next(0.0) == []
    assert not bench.session.ended()
    bench.members[1].die(ActorDiedError())
    with pytest.raises(WorkerLost, match=r"worker 1 on node 10.0.0.1 \(process 7\) was lost"):
        bench.session.next(1.0)


def test_an_echo_without_a_death_is_the_error_after_a_while(bench, fake_ray):
    bench.members[0].fail(raised(JobFailed("worker 0: KeyError: 'x'")))
    before = fake_ray.now
    with pytest.raises(JobFailed, match="KeyError"):
        bench.session.result(60.0)
    assert 1.0 < fake_ray.now - before < 10.0


def test_our_own_error_outranks_a_foreign_one(bench):
    bench.members[0].fail(raised(JobFailed("worker 0: RuntimeError: broken collective")))
    bench.members[1].fail(raised(TrainingDiverged("nan")))
    with pytest.raises(TrainingDiverged):
        bench.session.result(60.0)


def test_a_failure_does_not_wait_for_a_member_that_is_stuck(bench, fake_ray):
    bench.members[1].fail(raised(TrainingDiverged("nan")))
    before = fake_ray.now
    with pytest.raises(TrainingDiverged):
        bench.session.result(600.0)
    assert fake_ray.now - before < 2.0
    assert not bench.session.idle(0.0)


def test_silence_is_a_loss(bench, fake_ray):
    bench.members[1].silent = True
    before = fake_ray.now
    with pytest.raises(WorkerLost, match=r"worker 1 .* has not answered for 5 s"):
        bench.session.result(600.0)
    assert fake_ray.now - before < 8.0


def test_a_member_that_answers_is_never_silent(bench, fake_ray):
    with pytest.raises(TimeoutError):
        bench.session.result(600.0)


def test_a_driver_that_was_away_does_not_blame_the_members(bench, fake_ray):
    bench.session.next(2.0)
    fake_ray.now += 3600.0
    assert bench.session.next(2.0) == []


def test_stop_asks_every_member_and_keeps_the_result(bench):
    for member in bench.members:
        member.finish("early")
    bench.session.stop(10.0)
    assert [member.stop_requests for member in bench.members] == [[1], [1]]
    assert not bench.abandoned
    assert bench.session.result(0.0) == "early"


def test_stop_kills_what_does_not_end(bench, fake_ray):
    before = fake_ray.now
    bench.session.stop(10.0)
    assert bench.abandoned
    assert fake_ray.now - before < 11.0
    with pytest.raises(WorkerLost, match="within the 10 s"):
        bench.session.result(0.0)


def test_of_those_that_make_no_progress_the_one_that_has_come_least_far_is_lost(bench, fake_ray):
    bench.members[0].pulse = Pulse(beats=8, age_s=61.0)
    bench.members[1].pulse = Pulse(beats=7, age_s=62.0)
    with pytest.raises(WorkerLost, match=r"worker 1 .* no progress for 60 s"):
        bench.session.result(600.0)
    assert [peer.rank for peer in bench.session.lost] == [1]


def test_a_work_that_gives_no_signs_is_not_judged_by_them(bench, fake_ray):
    for member in bench.members:
        member.pulse = Pulse(beats=0, age_s=3600.0)
    with pytest.raises(TimeoutError):
        bench.session.result(100.0)
