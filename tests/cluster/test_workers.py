"""What run_work makes of reports, losses, errors and interruptions."""

import pytest

from cluster.workers import run_work
from jobs.errors import TrainingDiverged, WorkerLost
from tests.cluster.worker_fakes import FakeGroup, Result


def work(context, request):
    raise AssertionError("a fake group runs nothing")


def test_reports_arrive_in_order_and_the_result_comes_back():
    group = FakeGroup([[[{"step": 1}], [], [{"step": 2}, {"step": 3}], Result("done")]])
    reports = []
    # An empty list in the middle is only a quiet moment.
    assert run_work(group, work, None, on_report=reports.append) == "done"
    assert [report["step"] for report in reports] == [1, 2, 3]
    assert group.events == ["start"]


def test_a_lost_worker_is_replaced_and_the_work_starts_again():
    group = FakeGroup([[[{"step": 1}], WorkerLost("worker 1")], [[{"step": 2}], Result(7)]])
    told = []
    result = run_work(
        group, work, None, max_failures=2, on_restart=lambda error, failures: told.append((str(error), failures))
    )
    assert result == 7
    assert group.events == ["start", "rebuild", "start"]
    assert told == [("worker 1", 1)]


def test_a_rebuild_that_fails_counts_as_a_failure_too():
    group = FakeGroup([[WorkerLost("first")], [Result(1)]], rebuild_fails_with=WorkerLost("second"))
    told = []
    assert run_work(group, work, None, max_failures=2, on_restart=lambda error, _: told.append(str(error))) == 1
    assert told == ["first", "second"]
    assert group.events == ["start", "rebuild", "rebuild", "start"]


@pytest.mark.parametrize("max_failures", [0, 2])
def test_failures_are_limited(max_failures):
    group = FakeGroup([[WorkerLost(f"loss {number}")] for number in range(5)])
    with pytest.raises(WorkerLost, match=f"loss {max_failures}"):
        run_work(group, work, None, max_failures=max_failures)
    assert group.events.count("rebuild") == max_failures


def test_an_error_of_the_work_is_not_retried():
    group = FakeGroup([[TrainingDiverged("nan")]])
    with pytest.raises(TrainingDiverged):
        run_work(group, work, None, max_failures=3)
    assert group.events == ["start"]


def test_an_interruption_stops_the_work():
    group = FakeGroup([[[{"step": 1}], KeyboardInterrupt(), Result(None)]])
    with pytest.raises(KeyboardInterrupt):
        run_work(group, work, None, stop_grace_s=4.0)
    assert group.sessions[0].stopped_with == 4.0


def test_an_error_of_on_report_stops_the_work():
    group = FakeGroup([[[{"step": 1}], Result(None)]])

    def refuse(report):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run_work(group, work, None, on_report=refuse, stop_grace_s=4.0)
    assert group.sessions[0].stopped_with == 4.0


def test_the_causes_of_all_attempts_are_told_in_the_end():
    group = FakeGroup([[WorkerLost("no power")], [WorkerLost("no memory")]])
    with pytest.raises(WorkerLost) as caught:
        run_work(group, work, None, max_failures=1)
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  attempt 1: no power", "  attempt 2: no memory"]


STOPPED = {"stopped": True}


def test_a_work_goes_on_in_a_group_that_has_grown():
    group = FakeGroup([[[{"step": 1}], Result(STOPPED)], [Result({"stopped": False})]], grows_to=4)
    sizes = []
    assert run_work(group, work, None, resizable=True, on_resize=lambda size, seconds: sizes.append(size)) == {
        "stopped": False
    }
    assert group.sessions[0].asked_to_stop
    assert group.events == ["start", "rebuild", "start"]
    assert sizes == [4]


def test_a_work_that_ended_before_it_saw_the_wish_is_done():
    group = FakeGroup([[[{"step": 1}], Result({"stopped": False})]], grows_to=4)
    assert run_work(group, work, None, resizable=True) == {"stopped": False}
    assert group.events == ["start"]


def test_what_cannot_be_resized_is_left_alone():
    group = FakeGroup([[[{"step": 1}], Result(1)]], grows_to=4)
    assert run_work(group, work, None) == 1
    assert not group.sessions[0].asked_to_stop


def test_the_user_is_heeded_also_while_the_group_grows():
    group = FakeGroup([[[{"step": 1}], [{"step": 2}], Result(STOPPED)]], grows_to=4)
    asked = iter([False, True])
    result = run_work(group, work, None, resizable=True, should_stop=lambda: next(asked))
    assert result == STOPPED
    assert group.events == ["start"]
