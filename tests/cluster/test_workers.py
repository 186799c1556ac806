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
