"""Several processes, one store: it is made once, each key is one job, nothing is lost, and nobody is told of a lock."""

import json
import subprocess
import sys
from pathlib import Path

from orchestrator.store import JobFilter, Store

from .submitter import OWN, SHARED

ROOT = Path(__file__).parents[3]
NUMBER = 3


def test_processes_that_open_and_submit_at_once(url: str):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.orchestrator.store.submitter", url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(NUMBER)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # all of them go at once, and find no database
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [(process.returncode, error) for process, (_, error) in zip(processes, outputs, strict=True)] == [
        (0, "")
    ] * NUMBER
    answers = [json.loads(said) for said, _ in outputs]
    with Store.open(url) as store:
        stored = {job.id for job in store.list_jobs(JobFilter(), limit=1000).items}
        events = store.events()
    assert {job for told in answers for job, _ in told.values()} == stored
    assert len(stored) == SHARED + NUMBER * OWN
    for key in (f"shared-{each}" for each in range(SHARED)):
        told = [answer[key] for answer in answers]
        assert len({job for job, _ in told}) == 1
        assert [created for _, created in told].count(True) == 1
    assert all(created for told in answers for key, (_, created) in told.items() if key.startswith("own-"))
    assert [event.seq for event in events] == list(range(1, len(stored) + 1))
