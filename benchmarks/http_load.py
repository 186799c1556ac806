"""Many submissions over HTTP at once: each accepted once, soon, and durable when it is acknowledged.

    python benchmarks/http_load.py [--submissions 2000] [--clients 16] [--store sqlite | postgresql] [--json]

Starts a service of its own on loopback (`thresher serve --api-only`; SQLite on this disk, or a PostgreSQL of its own,
started for it), and lets each client submit jobs one after the other. One submission in four is sent again under the
same idempotency key, at once or later, by any client: it must give the same job. At the end the service is killed with
SIGKILL, and the jobs are counted in its database. Memory is the service's resident set. Ends with 1 when something does
not hold.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

P95_MS = 150.0
REPEATED = 0.25
MIB = 1 << 20
GROWTH = 1.10
"""The resident set may be so much larger after all submissions than after a quarter of them."""


@dataclass
class Tally:
    """What the clients saw."""

    milliseconds: list[float] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """Idempotency key -> the job that was acknowledged."""
    repeated: int = 0
    faults: list[str] = field(default_factory=list)
    resident: dict[int, float] = field(default_factory=dict)
    """Distinct submissions -> MiB."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def document(number: int) -> dict[str, Any]:
    """No two are alike, so that nothing can be answered from what was planned before."""
    return {
        "name": f"load-{number % 50}",
        "priority": number % 7,
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"dropout": 0.1}},
        "train": {"epochs": 3, "seed": number},
    }


@contextmanager
def service(folder: Path, store: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A service of its own: the process, its URL, an admin token."""
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "--api-only", "--port", "0", "--rate", "0", "--json"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--runs", str(folder / "runs"), "--store", store], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit((folder / "serve.log").read_text())
            text += line
        said = json.loads(text)
        yield process, said["url"], said["token"]
    finally:
        process.kill()
        process.wait()


def submit_all(url: str, token: str, tally: Tally, pid: int, submissions: int, clients: int, seed: int) -> float:
    """All clients at once; returns the seconds."""
    numbers = iter(range(submissions))
    marks = {submissions // 4, submissions}
    watched = psutil.Process(pid)

    def one(http: httpx.Client, number: int) -> None:
        key = f"key-{number}"
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        started = time.perf_counter()
        answer = http.post(f"{url}/api/v1/jobs", json=document(number), headers=headers)
        took = 1000 * (time.perf_counter() - started)
        with tally.lock:
            tally.milliseconds.append(took)
            if answer.status_code not in (200, 201):
                tally.faults.append(f"{key}: {answer.status_code} {answer.text[:200]}")
                return
            job = answer.json()["id"]
            known = tally.jobs.setdefault(key, job)
            tally.repeated += answer.status_code == 200
            if known != job:
                tally.faults.append(f"{key} gave two jobs: {known} and {job}")
            if len(tally.jobs) in marks and len(tally.jobs) not in tally.resident:
                tally.resident[len(tally.jobs)] = watched.memory_info().rss / MIB

    def client(index: int) -> None:
        draw = random.Random(seed + index)
        with httpx.Client(timeout=60, trust_env=False, verify=False) as http:
            while True:
                with tally.lock:
                    number = next(numbers, None)
                    earlier = len(tally.jobs)
                if number is None:
                    return
                one(http, number)
                if draw.random() < REPEATED:
                    one(http, draw.choice((number, draw.randrange(max(1, earlier)))))

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The address of an empty one; a PostgreSQL server is gone afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'thresher.db'}"
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.service.postgresql import address, running_server

    with running_server() as socket:
        yield address(socket, "postgres")


def rows_of(store: str) -> list[tuple[str, str]]:
    """(idempotency key, job) of every job in the database, read after the service's death, without our own code."""
    query = "SELECT idempotency_key, id FROM jobs"
    if store.startswith("sqlite"):
        with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
            return list(connection.execute(query))
    with psycopg.connect(store.replace("+psycopg", "")) as server:
        return [(key, job) for key, job in server.execute(query)]


def measure(submissions: int, clients: int, seed: int, kind: str) -> dict[str, Any]:
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="http-load-") as name:
        folder = Path(name)
        with database(kind, folder) as store:
            with service(folder, store) as (process, url, token):
                seconds = submit_all(url, token, tally, process.pid, submissions, clients, seed)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            stored = rows_of(store)
    lost = [key for key, job in tally.jobs.items() if (key, job) not in set(stored)]
    ordered = sorted(tally.milliseconds)
    first, last = (tally.resident.get(count, 0.0) for count in (submissions // 4, submissions))
    return {
        "submissions": submissions,
        "clients": clients,
        "store": kind,
        "requests": len(ordered),
        "repeated": tally.repeated,
        "seconds": round(seconds, 2),
        "per_second": round(len(ordered) / seconds, 1),
        "p50_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[int(0.95 * len(ordered))], 1),
        "max_ms": round(ordered[-1], 1),
        "acknowledged": len(tally.jobs),
        "stored": len(stored),
        "lost": len(lost),
        "faults": tally.faults[:10],
        "rss_mib": {"quarter": round(first, 1), "all": round(last, 1)},
        "holds": {
            "each exactly once": not tally.faults and len(tally.jobs) == len(stored) == submissions,
            "durable when acknowledged": not lost,
            f"p95 at most {P95_MS:g} ms": ordered[int(0.95 * len(ordered))] <= P95_MS,
            "memory flat": 0 < last <= GROWTH * first,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.submissions, options.clients, options.seed, options.store)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        table = Table(title=f"{found['submissions']} submissions by {found['clients']} clients, {found['store']}")
        for column in ("requests", "of them repeated", "a second", "p50 ms", "p95 ms", "max ms", "lost", "RSS MiB"):
            table.add_column(column, justify="right")
        memory = f"{found['rss_mib']['quarter']} → {found['rss_mib']['all']}"
        keys = ("requests", "repeated", "per_second", "p50_ms", "p95_ms", "max_ms", "lost")
        table.add_row(*(str(found[key]) for key in keys), memory)
        console = Console()
        console.print(table)
        for what, holds in found["holds"].items():
            console.print(f"{'ok  ' if holds else 'FAIL'}  {what}")
    sys.exit(not all(found["holds"].values()))


if __name__ == "__main__":
    main()
