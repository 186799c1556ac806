"""What a search leaves on a Ray that outlives it, however it ends; and what its workers keep from trial to trial."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from cluster.gang import Gang
from cluster.workers import run_work
from jobs.context import WorkRef
from jobs.layout import ParallelLayout
from jobs.records import Trial
from orchestrator import JobSpec, search
from tests.multiprocess.cells import dataset_of, request_of, spec_of
from tests.ray.conftest import ROOT, Head
from tests.ray.endings import ENDINGS, LONG
from tests.ray.sweep import DIGITS, events, remains, wait_for, workers_of

SOON_S = 60.0
MOST_GROWTH = 1.1


@dataclass(frozen=True)
class Held:
    """What there is of a search beside its results."""

    processes: Counter[str]
    """Ray's workers by name. Idle ones are not counted: Ray keeps some in stock."""
    actors: int
    placement_groups: int
    folders: int
    """For temporary files: the driver's, and Tune's below Ray's own."""
    scratch: int
    """Tune's in the storage."""


class Driver:
    """A process of `endings.py`, on the cluster of `head`."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.head, self.storage = head, folder / "runs"
        self.temporary = Path(tempfile.mkdtemp(prefix="l-", dir="/tmp"))  # short: Ray's sockets are named below it
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_TOKEN": head.token, "TMPDIR": str(self.temporary)}
        self.log = folder / "driver.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray.endings", head.address, str(self.storage)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.log.read_text()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def held(self) -> Held:
        names = [name for parent in (self.head.pid, self.process.pid) for name in names_below(parent)]
        return Held(
            processes=Counter(name for name in names if name.startswith("ray::") and "IDLE" not in name),
            actors=sum(actor["state"] != "DEAD" for actor in self._told("actors")),
            placement_groups=sum(group["state"] != "REMOVED" for group in self._told("placement_groups")),
            folders=len([*self.temporary.rglob("*"), *self.head.folder.glob("session_2*/artifacts/*")]),
            scratch=len(list(self.storage.glob("stages/*/tune"))),
        )

    def _told(self, what: str) -> list[dict[str, Any]]:
        """By Ray's own State API."""
        request = urllib.request.Request(
            f"{self.head.url}/api/v0/{what}?limit=1000", headers={"Authorization": f"Bearer {self.head.token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found


def names_below(pid: int) -> Iterator[str]:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                yield child.name()


@pytest.fixture
def driver(ray_head: Head, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(ray_head, tmp_path)
    try:
        yield driver
    finally:
        driver.kill()
        shutil.rmtree(driver.temporary, ignore_errors=True)


@pytest.mark.timeout(600)  # six gangs are started
@pytest.mark.usefixtures("local_ray")
def test_however_a_search_ends_nothing_of_it_is_left(driver: Driver):
    driver.wait_until_ready()
    before = driver.held()
    for ending in ENDINGS:
        driver.go_on()
        driver.wait_until_ready()
        check(driver, before, ending.__name__)
    shown = len(epochs(driver.storage))
    driver.go_on()
    wait_for(lambda: len(epochs(driver.storage)) > shown or driver.process.poll() is not None, SOON_S)
    assert driver.held().actors > before.actors, driver.log.read_text()
    driver.kill()
    left = {"folders": before.folders + 1, "scratch": 1}  # what the next process needs, or removes
    check(driver, Held(**{**vars(before), **left}), "killed")
    assert len(search(LONG, runs=driver.storage).trials) == 2
    check(driver, before, "gone on with")
    assert remains(driver.storage) == []


def check(driver: Driver, before: Held, ending: str) -> None:
    """Ray needs a moment until processes are gone."""
    with suppress(AssertionError):
        wait_for(lambda: driver.held() == before, SOON_S)
    assert driver.held() == before, ending


def epochs(storage: Path) -> list[dict[str, Any]]:
    return [event for event in events(storage) if event["event"] == "trial_epoch"]


@pytest.mark.usefixtures("local_ray")
def test_the_workers_of_a_gang_do_not_grow_from_training_to_training(tmp_path: Path):
    spec = spec_of("mlp", "adamw", tmp_path, **{"train.steps": 5})
    dataset, sizes = dataset_of(spec, tmp_path), dict[int, int]()
    with Gang(1, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
        for number in range(1, 61):
            request = request_of(spec, ParallelLayout(), dataset, tmp_path / str(number))
            run_work(gang, WorkRef("jobs.train.work:train"), request)
            sizes[number] = resident()
    assert sizes[60] <= MOST_GROWTH * sizes[20], sizes


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_workers_of_a_gang_do_not_grow_in_200_trials(tmp_path: Path):
    values = {"search.trials": 200, "search.concurrency": 1, "train.epochs": 1}
    sizes, descriptors, threads = [0], [0], [0]

    def note(trial: Trial) -> None:
        (worker,) = workers_of(os.getpid(), "Member")
        sizes.append(worker.memory_info().rss)
        descriptors.append(worker.num_fds())
        threads.append(worker.num_threads())

    search(JobSpec.parse(DIGITS).replace(values), runs=tmp_path, on_trial=note)
    print(f"resident after 20, 100, 200 trials: {sizes[20]:,}, {sizes[100]:,}, {sizes[200]:,} bytes")  # noqa: T201
    assert sizes[200] <= MOST_GROWTH * sizes[20]
    for counts in (descriptors, threads):  # of many moments: the next trial is under way at each
        assert median(counts[181:201]) <= median(counts[11:31]), counts


def resident() -> int:
    (worker,) = workers_of(os.getpid(), "Member")
    return int(worker.memory_info().rss)
