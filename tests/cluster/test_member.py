"""A member's three threads, without Ray around them."""

import os
import threading
import time

import pytest

from cluster.member import Member
from jobs.errors import JobFailed, TrainingDiverged


@pytest.fixture
def member(monkeypatch):
    for name in ("OMP_NUM_THREADS", "RANK"):
        monkeypatch.setenv(name, "unset")
    member = Member(3)
    member.seat(0, 2, {"RANK": "0"})
    return member


def test_the_environment_is_set(member):
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["RANK"] == "0"


def test_work_sees_its_seat(member):
    seen = member.run(1, lambda context, request: (context.rank, context.size, context.num_threads, request), "r")
    assert seen == (0, 2, 3, "r")


def test_only_rank_0_reports_and_returns(member):
    member.seat(1, 2, {})

    def work(context, request):
        context.report({"loss": 1.0})
        return "heavy"

    assert member.run(1, work, None) is None
    assert member.take_reports(1, 0.0) == ([], True)


def test_reports_stream_while_work_runs(member):
    go_on = threading.Event()

    def work(context, request):
        context.report({"step": 1})
        assert go_on.wait(30.0)
        context.report({"step": 2})

    thread = threading.Thread(target=member.run, args=(1, work, None))
    thread.start()
    assert member.take_reports(1, 30.0) == ([{"step": 1}], False)
    go_on.set()
    thread.join()
    assert member.take_reports(1, 30.0) == ([{"step": 2}], True)
    assert member.take_reports(1, 30.0) == ([], True)


def test_reports_that_are_gathered_arrive_together_and_the_last_at_once(member):
    def work(context, request):
        for step in range(3):
            context.report({"step": step})
            time.sleep(0.01)

    thread = threading.Thread(target=member.run, args=(1, work, None))
    thread.start()
    start = time.monotonic()
    assert member.take_reports(1, 30.0, 30.0) == ([{"step": step} for step in range(3)], True)
    assert time.monotonic() - start < 10.0
    thread.join()


def test_reports_are_gathered_only_so_long(member):
    go_on = threading.Event()

    def work(context, request):
        context.report({"step": 1})
        assert go_on.wait(30.0)

    thread = threading.Thread(target=member.run, args=(1, work, None))
    thread.start()
    assert member.take_reports(1, 30.0, 0.01) == ([{"step": 1}], False)
    go_on.set()
    thread.join()


def test_a_question_that_comes_before_its_work_waits_for_it(member):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(member.take_reports(1, 30.0)))
    thread.start()
    member.run(1, lambda context, request: None, None)
    thread.join(30.0)
    assert answers == [([], True)]


def test_a_question_is_answered_when_its_time_is_up(member):
    start = time.monotonic()
    assert member.take_reports(1, 0.05) == ([], False)
    assert time.monotonic() - start < 10.0


def test_a_stop_that_comes_before_its_work_counts(member):
    member.request_stop(1)
    assert member.run(1, lambda context, request: context.stop_requested(), None) is True


def test_a_stop_does_not_reach_the_next_work(member):
    member.request_stop(1)
    member.run(1, lambda context, request: None, None)
    assert member.run(2, lambda context, request: context.stop_requested(), None) is False


def test_our_errors_pass_and_others_become_job_failed(member):
    def diverge(context, request):
        raise TrainingDiverged("nan")

    def stumble(context, request):
        return {}["missing"]

    with pytest.raises(TrainingDiverged):
        member.run(1, diverge, None)
    with pytest.raises(JobFailed, match=r"worker 0: KeyError: 'missing'") as caught:
        member.run(2, stumble, None)
    assert "in stumble" in str(caught.value)
    assert member.take_reports(2, 0.0) == ([], True)
