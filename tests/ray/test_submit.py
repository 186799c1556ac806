"""Whole jobs, and connections, on a real cluster that demands a token."""

import os
import subprocess
import sys
import time

import pytest

from cluster.submit import RayJobs
from jobs.errors import ClusterUnreachable, SpecError

DRIVER = """
import sys
from pathlib import Path
{before}
from cluster.connect import connect
from jobs.errors import ClusterUnreachable

def main():
    with connect({address!r}, working_dir=Path({working_dir!r}), connect_timeout_s=60.0) as connection:
        from cluster.gang import Gang
        from cluster.workers import run_work
        import of_the_user
        with Gang(2) as gang:
            print("answer", run_work(gang, of_the_user.work, 20))

try:
    main()
except ClusterUnreachable as error:
    sys.exit(f"unreachable: {{error}}")
"""


@pytest.fixture
def jobs(ray_head, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", ray_head.token)
    return RayJobs(ray_head.url)


@pytest.fixture
def user_code(tmp_path):
    """A folder with a module that only the user has."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "of_the_user.py").write_text("def work(context, request):\n    return request + context.size\n")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "large.bin").write_bytes(b"stays at home")
    return folder


def drive(head, code, *, token, address=None, before=""):
    """A driver in a process of its own, because this one is connected to another Ray."""
    program = DRIVER.format(address=address or head.address, working_dir=str(code), before=before)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN": token, "PYTHONPATH": str(code)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)


FOLLOWED = """
import os, sys, time
import of_the_user
print(os.environ["GREETING"], flush=True)
deadline = time.monotonic() + 60
while not os.path.exists(sys.argv[1]) and time.monotonic() < deadline:
    time.sleep(0.1)
print("released" if os.path.exists(sys.argv[1]) else "forgotten")
print(os.path.exists(".venv"), end="")
"""


def test_a_job_runs_in_its_own_code_and_its_logs_can_be_followed(jobs, user_code, tmp_path):
    (user_code / "follow.py").write_text(FOLLOWED)
    signal = tmp_path / "go on"
    entrypoint = f"python follow.py '{signal}'"
    assert jobs.submit(entrypoint, "follow-1", working_dir=user_code, env={"GREETING": "hello"}) == "follow-1"
    lines = []
    for line in jobs.logs("follow-1"):
        lines.append(line)
        if line == "hello":
            assert jobs.status("follow-1").status == "RUNNING"
            signal.touch()
    # Each line once, to the last that has no end; and the virtual environment stayed at home.
    assert lines[-3:] == ["hello", "released", "False"]
    state = jobs.status("follow-1")
    assert (state.status, state.exit_code, state.ended) == ("SUCCEEDED", 0, True)
    assert list(jobs.logs("follow-1")) == lines


def test_a_failed_job_tells_its_exit_code(jobs):
    jobs.submit("exit 3", "fail-1")
    assert any("exit 3" in line for line in jobs.logs("fail-1"))
    state = jobs.status("fail-1")
    assert (state.status, state.exit_code) == ("FAILED", 3)


def test_a_job_with_a_known_id_is_adopted(jobs):
    jobs.submit("echo first", "twice-1")
    assert jobs.submit("echo second", "twice-1") == "twice-1"
    lines = list(jobs.logs("twice-1"))
    assert "first" in lines
    assert "second" not in lines


def test_a_stopped_job_has_time_to_put_its_things_in_order(jobs):
    # Longer than the three seconds that Ray would give by itself.
    tidy = "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(4), print('saved'), sys.exit(0)))"
    jobs.submit(f"exec python -uc \"{tidy}; print('ready'); time.sleep(100)\"", "stop-1")
    logs = jobs.logs("stop-1")
    assert any(line == "ready" for line in logs)
    start = time.monotonic()
    assert jobs.stop("stop-1", timeout_s=30.0).status == "STOPPED"
    assert time.monotonic() - start < 25.0
    assert "saved" in list(logs)


def test_an_unknown_job_is_refused(jobs):
    with pytest.raises(SpecError, match="never-submitted"):
        jobs.status("never-submitted")


def test_a_wrong_token_is_said_to_be_wrong(ray_head, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(ClusterUnreachable, match="does not accept the token"):
        RayJobs(ray_head.url).status("follow-1")


# `import ray` first: then Ray has read its settings before connect() could make it show a token.
@pytest.mark.parametrize("before", ["", "import ray"])
def test_a_node_of_the_cluster_connects_and_the_users_module_travels(ray_head, user_code, before):
    driver = drive(ray_head, user_code, token=ray_head.token, before=before)
    assert driver.returncode == 0, driver.stderr
    # And nothing else: standard output carries results.
    assert driver.stdout == "answer 22\n"


def test_a_connection_with_the_wrong_token_fails_soon_and_clearly(ray_head, user_code):
    start = time.monotonic()
    driver = drive(ray_head, user_code, token="wrong")
    assert driver.returncode == 1
    assert "does not accept the token" in driver.stderr
    assert time.monotonic() - start < 50.0  # it would try for 60


def test_the_entrypoint_of_a_job_connects_to_the_jobs_own_cluster(jobs, user_code):
    (user_code / "driver.py").write_text(DRIVER.format(address="auto", working_dir=".", before=""))
    jobs.submit(f"{sys.executable} driver.py", "nested-1", working_dir=user_code)
    assert "answer 22" in list(jobs.logs("nested-1"))
    assert jobs.status("nested-1").status == "SUCCEEDED"
