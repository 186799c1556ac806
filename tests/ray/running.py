"""What every WorkerGroup is held to while nothing goes wrong."""

import time

import pytest

from cluster.workers import run_work
from jobs.errors import DataError, JobFailed, TrainingDiverged
from tests.ray import gang_works

SOON_S = 20.0
"""On a machine that others use as well; what would have to be waited for otherwise lasts a minute."""


class RunningContract:
    """All in one warm group, which whoever inherits this provides as `shared`."""

    def test_workers_have_a_seat_and_threads(self, shared):
        seen = run_work(shared, gang_works.describe, {"epochs": 3})
        assert seen["seat"] | {"MASTER_PORT": ""} == {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "",
        }
        assert int(seen["seat"]["MASTER_PORT"]) > 0
        assert seen["threads"] == ("1", 1)
        assert seen["request"] == {"epochs": 3}

    def test_a_warm_group_runs_a_hundred_works_in_no_time(self, shared):
        process = run_work(shared, gang_works.describe, None)["pid"]
        start = time.monotonic()
        assert [run_work(shared, gang_works.noop, number) for number in range(100)] == list(range(100))
        assert time.monotonic() - start < SOON_S  # a group that is started anew each time takes minutes
        assert run_work(shared, gang_works.describe, None)["pid"] == process

    def test_functions_defined_on_the_spot_travel_too(self, shared):
        factor = 3
        assert run_work(shared, lambda context, request: request * factor, 14) == 42

    def test_reports_stream_and_a_stop_ends_the_work(self, shared):
        session = shared.start(gang_works.count, None)
        reports = []
        deadline = time.monotonic() + SOON_S
        while len(reports) < 5 and time.monotonic() < deadline:
            for report in session.next(1.0):
                reports.append(report["step"])
                assert time.time() - report["sent_at"] < SOON_S
        session.stop(SOON_S)
        counted = session.result(0.0)
        reports += [report["step"] for report in session.next(0.0)]
        assert reports == list(range(counted))
        assert session.done()

    def test_no_report_of_a_burst_is_lost(self, shared):
        reports = []
        assert run_work(shared, gang_works.report_burst, 2000, on_report=reports.append) == 2000
        assert [report["step"] for report in reports] == list(range(2000))

    def test_one_work_at_a_time(self, shared):
        session = shared.start(gang_works.count, None)
        with pytest.raises(RuntimeError, match="one work at a time"):
            shared.start(gang_works.noop, None)
        with pytest.raises(TimeoutError):
            session.result(0.1)
        session.stop(SOON_S)

    def test_our_errors_arrive_as_they_were(self, shared):
        reports = []
        with pytest.raises(TrainingDiverged, match="NaN at step 7") as caught:
            run_work(shared, gang_works.diverge, 7, on_report=reports.append)
        assert type(caught.value) is TrainingDiverged
        assert reports == [{"loss": 1.0}]
        with pytest.raises(DataError) as caught:
            run_work(shared, gang_works.bad_data, "digit.csv")
        assert caught.value.problems[0].nearest == "digits.csv"

    def test_other_errors_arrive_as_job_failed_with_the_place(self, shared):
        with pytest.raises(JobFailed, match=r"Unknown: odd(.|\n)*in stumble"):
            run_work(shared, gang_works.stumble, None)
        assert run_work(shared, gang_works.noop, "still warm") == "still warm"
