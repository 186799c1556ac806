"""Jobs, a service and a cluster in which things die, and what is to hold afterwards.

    python -m tests.service.chaos [--jobs 60] [--service-kills 10] [--driver-kills 6] [--worker-kills 6] [--seed 0]

Three real Ray nodes and a real `thresher serve` over PostgreSQL, killed with -9 at random moments; drivers and workers
of jobs killed, a node removed and another added, the head restarted once, the database's connections cut. Prints what
became of the jobs; the exit code says whether each ended as its evidence says.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy

from cluster.local import LocalCluster
from orchestrator.client import Client
from orchestrator.store import AttemptRecord, JobRecord, Store, StoreUnavailable
from tests.service.conftest import start
from tests.service.postgresql import address, running_server


def spec(number: int, fails: bool) -> dict[str, Any]:
    """A short training of one worker; one that is to fail diverges."""
    train: dict[str, Any] = {"steps": 60, "batch_size": 64, "seed": number, "checkpoint": {"every_steps": 20}}
    if fails:
        train |= {"loss": "mse", "optimizer": {"name": "sgd", "lr": 100.0}}
    return {
        "name": "fails" if fails else "short",
        "data": {"source": {"kind": "builtin", "name": "diabetes" if fails else "digits"}},
        "metric": "rmse" if fails else "accuracy",
        "model": {"name": "mlp"},
        "train": train,
        "retry": {"max_failures": 0},
    }


@dataclass
class World:
    """The cluster, the service on it, and the store behind."""

    cluster: LocalCluster
    folder: Path
    url: str
    seed: int = 0
    port: int = 0
    token: str = ""
    process: subprocess.Popen[str] | None = None
    did: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def serve(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= self.cluster.client_environment
        options = ("--ray", str(self.cluster.dashboard), "--store", self.url, "--rate", "0")
        log = self.folder / "serve.log"
        self.process, said = start(self.folder / "runs", log, self.port, *options, env=env, api_only=False)
        self.port = int(said["url"].rpartition(":")[2])
        self.token = self.token or said["token"]

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", self.token)

    # --- what dies ---------------------------------------------------------------------------------------------

    def kill_service(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
        self.did["service killed"] += 1
        self.serve()

    def kill_driver(self) -> None:
        self._kill("driver", [p for p in self._processes() if self._is_driver(p)])

    def kill_worker(self) -> None:
        self._kill("worker", [p for p in self._processes() if self._title(p).startswith("ray::Member")])

    def lose_node(self) -> None:
        number = self.random.choice([node for node in self.cluster.nodes if node])
        self.cluster.kill_node(number)
        self.did["node lost"] += 1
        self.cluster.add_node()

    def restart_head(self) -> None:
        self.cluster.restart()
        self.did["head restarted"] += 1

    def cut_database(self) -> None:
        if not self.url.startswith("postgresql"):
            return
        engine = sqlalchemy.create_engine(self.url)
        with engine.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(sqlalchemy.text(f"{others} AND datname = current_database()"))
        engine.dispose()
        self.did["database cut"] += 1

    def _kill(self, what: str, found: list[psutil.Process]) -> None:
        if found:
            with suppress(psutil.NoSuchProcess):
                self.random.choice(sorted(found, key=lambda p: p.pid)).kill()
                self.did[f"{what} killed"] += 1

    def _processes(self) -> list[psutil.Process]:
        found = []
        for pid in self.cluster.processes():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    @staticmethod
    def _title(process: psutil.Process) -> str:
        with suppress(psutil.Error):
            return " ".join(process.cmdline())
        return ""

    def _is_driver(self, process: psutil.Process) -> bool:
        title = self._title(process)
        return "orchestrator.cli" in title and str(self.folder) in title

    # --- what is left ------------------------------------------------------------------------------------------

    def _census(self) -> dict[str, int]:
        """Living actors and placement groups, and drivers of jobs."""
        token = self.cluster.token_path.read_text()
        counts = {"drivers": sum(self._is_driver(process) for process in self._processes())}
        for kind, gone in (("actors", "DEAD"), ("placement_groups", "REMOVED")):
            request = urllib.request.Request(
                f"{self.cluster.dashboard}/api/v0/{kind}?limit=1000&detail=1",
                headers={"Authorization": f"Bearer {token}"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = json.load(answer)["data"]["result"]["result"]
            counts[kind] = sum(
                one["state"] != gone and "JobSupervisor" not in str(one.get("class_name")) for one in found
            )
        return counts

    def leaked(self, within_s: float = 60.0) -> dict[str, int]:
        deadline = time.monotonic() + within_s
        while any((counts := self._census()).values()) and time.monotonic() < deadline:
            time.sleep(1)
        return {what: count for what, count in counts.items() if count}


@contextmanager
def world(seed: int, store: str | None = None) -> Iterator[World]:
    """A cluster of three nodes and a service on it; over SQLite unless a database is named."""
    with tempfile.TemporaryDirectory(prefix="thresher-chaos-") as name, LocalCluster(3, cpus_per_node=1) as cluster:
        found = World(cluster, Path(name), store or f"sqlite:///{name}/thresher.db", seed)
        found.serve()
        try:
            yield found
        finally:
            if found.process is not None:
                found.process.send_signal(signal.SIGTERM)
                try:
                    found.process.wait(60)
                except subprocess.TimeoutExpired:
                    found.process.kill()


def play(of: World, jobs: int, failing: int, blows: list[str], within_s: float, gap_s: float) -> list[JobRecord]:
    """Submits, strikes one blow after the other at random moments, and waits for all jobs to end."""
    ids = []
    for number in range(jobs):
        with of.client() as client:
            ids.append(client.submit(spec(number, number < failing), key=f"chaos-{number}").id)
    deadline = time.monotonic() + within_s
    with Store.open(of.url) as store:
        left = list(blows)
        strike_at = time.monotonic() + of.random.uniform(0.3, 1.0) * gap_s
        while time.monotonic() < deadline:
            records = [_job(store, one) for one in ids]
            if all(record.state.terminal for record in records):
                break
            if left and time.monotonic() >= strike_at:
                getattr(of, left.pop(0))()
                strike_at = time.monotonic() + of.random.uniform(0.3, 1.0) * gap_s
            time.sleep(0.5)
        return [_job(store, one) for one in ids]


def _job(store: Store, job_id: str) -> JobRecord:
    for _ in range(10):
        with suppress(StoreUnavailable):
            found = store.job(job_id)
            assert found is not None, f"job {job_id} is lost"
            return found
        time.sleep(0.5)
    raise AssertionError("the database does not come back")


def judge(of: World, records: list[JobRecord], failing: int) -> tuple[Counter[str], list[str]]:
    """What became of the jobs, and what must not have."""
    wrong: list[str] = []
    states = Counter(record.state.value for record in records)
    with Store.open(of.url) as store:
        for number, record in enumerate(records):
            expected = "FAILED" if number < failing else "SUCCEEDED"
            if record.state.value != expected:
                wrong.append(f"{record.id} is {record.state.value}, not {expected}: {record.cause} {record.detail}")
            attempts = store.attempts(record.id)
            wrong += _overlaps(record, attempts)
            states["attempts"] += len(attempts)
            folder = of.folder / "runs" / record.run_id
            complete = (folder / "report.json").exists()
            if complete != (expected == "SUCCEEDED"):
                wrong.append(f"{record.id}: {record.state.value} and {'a' if complete else 'no'} report")
        registered = Counter(model.job_id for model in store.models("default", "short"))
        if registered != Counter(record.id for record in records[failing:]):
            wrong.append(f"registered models: {dict(registered)}")
    if leaked := of.leaked():
        wrong.append(f"left behind: {leaked}")
    return states, wrong


def _overlaps(record: JobRecord, attempts: list[AttemptRecord]) -> list[str]:
    """Attempts of a job must follow one another: none begins before the one before it is gone."""
    ordered = sorted(attempts, key=lambda one: one.number)
    return [
        f"{record.id}: attempt {later.number} was planned before attempt {former.number} was gone"
        for former, later in itertools.pairwise(ordered)
        if former.ended_ms is None or later.planned_ms < former.ended_ms
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--service-kills", type=int, default=10)
    parser.add_argument("--driver-kills", type=int, default=6)
    parser.add_argument("--worker-kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=40.0)
    options = parser.parse_args()
    blows = ["kill_service"] * options.service_kills + ["kill_driver"] * options.driver_kills
    blows += ["kill_worker"] * options.worker_kills + ["lose_node", "restart_head", "cut_database", "cut_database"]
    random.Random(options.seed).shuffle(blows)
    failing = options.jobs // 10
    with running_server() as socket:
        bare = sqlalchemy.create_engine(address(socket, "postgres"), isolation_level="AUTOCOMMIT")
        with bare.connect() as connection:
            connection.execute(sqlalchemy.text("CREATE DATABASE chaos"))
        bare.dispose()
        with world(options.seed, address(socket, "chaos")) as of:
            began = time.monotonic()
            records = play(of, options.jobs, failing, blows, 60 * options.minutes, gap_s=25.0)
            states, wrong = judge(of, records, failing)
            log = of.folder / "serve.log"
            tail = log.read_text()[-3000:] if wrong else ""
    document = {"seconds": round(time.monotonic() - began), "did": dict(of.did), "jobs": dict(states), "wrong": wrong}
    sys.stdout.write(json.dumps(document, indent=1) + "\n" + tail)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
