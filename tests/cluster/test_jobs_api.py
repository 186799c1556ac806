"""RayJobs against a job server that loses replies, falls silent, or does not like the token."""

import threading
import time

import pytest

from cluster.submit import JobState, RayJobs
from jobs.errors import ClusterUnreachable, JobFailed, SpecError
from tests.cluster.fake_head import FakeHead

SOON_S = 20.0
"""Whoever is silent answers after 30 s at the earliest."""


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))


@pytest.fixture
def head():
    with FakeHead() as head:
        yield head


@pytest.fixture
def jobs(head):
    return RayJobs(head.url, timeout_s=5.0)


@pytest.fixture
def impatient(head):
    """For those that get no answer."""
    return RayJobs(head.url, timeout_s=0.1)


def test_a_submission_carries_its_environment_and_time_to_stop(head, jobs):
    assert jobs.submit("thresher run spec.yaml", "job-1", env={"A": "b"}, metadata={"run": "r"}) == "job-1"
    environment = head.jobs["job-1"].runtime_env["env_vars"]
    assert environment["A"] == "b"
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30


def test_a_known_id_is_adopted(head, jobs):
    jobs.submit("first", "job-1")
    assert jobs.submit("second", "job-1") == "job-1"
    assert head.jobs["job-1"].entrypoint == "first"


def test_a_job_whose_reply_was_lost_is_adopted(head, jobs):
    head.lose_the_reply_to_the_next_submit()
    assert jobs.submit("only once", "job-1") == "job-1"
    assert list(head.jobs) == ["job-1"]


def test_a_refusal_stays_a_refusal(jobs):
    with pytest.raises(JobFailed, match="no such runtime_env plugin"):
        jobs.submit("refused", "job-1")


def test_a_missing_working_directory_is_named(jobs, tmp_path):
    with pytest.raises(SpecError) as caught:
        jobs.submit("echo", "job-1", working_dir=tmp_path / "nowhere")
    assert caught.value.problems[0].path == "code.working_dir"


def test_an_unknown_id_is_refused(jobs):
    for call in (jobs.status, jobs.stop, lambda name: list(jobs.logs(name))):
        with pytest.raises(SpecError, match="job-9"):
            call("job-9")


def test_silence_is_unreachable_and_soon(head, impatient):
    head.go_silent()
    for call in (lambda: impatient.status("job-1"), lambda: impatient.submit("echo", "job-1")):
        start = time.monotonic()
        with pytest.raises(ClusterUnreachable, match=head.url):
            call()
        assert time.monotonic() - start < SOON_S


def test_falling_silent_later_is_unreachable_too(head, jobs, impatient):
    jobs.submit("echo", "job-1")
    head.go_silent()
    with pytest.raises(ClusterUnreachable):
        impatient.status("job-1")


def test_a_gateway_without_ray_behind_it_is_no_failed_job(head, jobs):
    jobs.submit("echo", "job-1")
    head.hide_behind_a_gateway()
    with pytest.raises(ClusterUnreachable):
        jobs.status("job-1")


def test_nobody_there():
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1 "):
        RayJobs("http://127.0.0.1:1").status("job-1")


def test_something_else_that_speaks_http_is_no_job_server():
    with FakeHead() as head:
        head._answer = lambda *_: (200, "<html>")
        with pytest.raises(ClusterUnreachable):
            RayJobs(head.url).status("job-1")


def test_the_address_must_be_a_url():
    with pytest.raises(SpecError, match="did you mean 'http://head:8265'"):
        RayJobs("head:8265")


def test_ray_address_does_not_redirect(head, jobs, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    jobs.submit("echo", "job-1")
    assert list(head.jobs) == ["job-1"]


def test_the_token_is_shown(monkeypatch):
    with FakeHead(token="secret") as head:
        with pytest.raises(ClusterUnreachable, match="none was found"):
            RayJobs(head.url).status("job-1")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ClusterUnreachable, match="does not accept the token"):
            RayJobs(head.url).status("job-1")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
        assert RayJobs(head.url).submit("echo", "job-1") == "job-1"


def test_stop_waits_for_the_end(head, jobs):
    jobs.submit("echo", "job-1")
    threading.Timer(0.2, head.end, ("job-1", "STOPPED")).start()
    assert jobs.stop("job-1", timeout_s=10.0) == JobState("STOPPED", "so it is")
    assert head.jobs["job-1"].stops == 1


def test_a_job_that_does_not_end_is_said_to_run_still(jobs):
    jobs.submit("echo", "job-1")
    with pytest.raises(JobFailed, match="still RUNNING"):
        jobs.stop("job-1", timeout_s=0.1)


def test_logs_survive_streams_that_break_off(head, jobs):
    jobs.submit("echo", "job-1")
    threading.Timer(0.2, head.end, ("job-1", "SUCCEEDED", "one\ntwo\nno line end")).start()
    assert list(jobs.logs("job-1")) == ["one", "two", "no line end"]


def test_all_states_are_one_request(head, jobs):
    for name in ("job-1", "job-2"):
        jobs.submit("echo", name)
    head.end("job-2", "FAILED")
    head.jobs["job-1"].ray_job = "01000000"
    before = head.num_requests
    states = jobs.states()
    assert head.num_requests == before + 1
    assert {name: (state.status, state.ray_job) for name, state in states.items()} == {
        "job-1": ("RUNNING", "01000000"),
        "job-2": ("FAILED", None),
    }
    assert jobs.status("job-1") == states["job-1"]


def test_no_list_is_unreachable_and_soon(head, jobs, impatient):
    jobs.submit("echo", "job-1")
    head.go_silent()
    begun = time.monotonic()
    with pytest.raises(ClusterUnreachable):
        impatient.states()
    assert time.monotonic() - begun < SOON_S


def test_a_driver_reserves_nothing(head, jobs):
    """It mostly waits for its workers, which have what was asked for: see docs/operations.md."""
    jobs.submit("echo", "job-1")
    asked = head.jobs["job-1"].asked
    assert not any(asked.get(f"entrypoint_{name}") for name in ("num_cpus", "num_gpus", "memory", "resources"))
