"""The store with many finished jobs: how long a page of the list takes, and all that is known of one job.

    python benchmarks/store.py [--jobs 100000] [--rounds 60] [--database sqlite --database postgresql] [--json]

The jobs are written in bulk, straight into the tables, with the attempts and events that they would have left; what is
measured is read through the store itself, each query `--rounds` times with other values. SQLite is a file on this
disk, PostgreSQL a server of its own on a socket; its statistics are brought up to date first, as its autovacuum would
soon do. The limits are on time by the clock; the CPU time beside is this process's own (with SQLite all of it), and
tells a slow query from a busy machine. How many jobs, of what kind, and the limits that must hold are in `store.json`.
Needs what the tests need. Ends with 1 when a limit does not hold.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, text

from jobs.spec import JobSpec
from orchestrator.scheduling import Demand
from orchestrator.store import JobFilter, JobState, Store, rows, tables
from orchestrator.store.database import Transaction

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests are not installed
from tests.service.postgresql import address, running_server  # noqa: E402

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())
DATABASES = ("sqlite", "postgresql")
GAP_MS = 20_000
"""Between two submissions: 100,000 jobs are 23 days of work."""
BATCH = 2000


def documents() -> list[dict[str, Any]]:
    """Specs as they are stored, each with a note in `description` that brings it to the size wanted."""
    found = []
    for name in DATA["specs"]:
        document = JobSpec.load(ROOT / "examples" / f"{name}.yaml").document()
        missing = DATA["spec_bytes"] - len(json.dumps(document)) - len(', "description": ""')
        found.append(document | {"description": ("what this job is for, in words; " * 50)[: max(missing, 0)]})
    return found


def finished(number: int, submitted_ms: int, spec: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The row of a job that has run once, or, one in ten, twice."""
    shares = DATA["states"]
    state = draw.choices(list(shares), list(shares.values()))[0]
    twice = state != "CANCELLED" and draw.random() < 0.1
    name = f"job-{draw.randrange(DATA['names']):03}"
    job_id = f"{name}-{number:010x}"
    wait_ms, run_ms = draw.randrange(1000, 600_000), draw.randrange(10_000, 3_600_000)
    return {
        "id": job_id,
        "project": f"project-{draw.randrange(DATA['projects'])}",
        "name": name,
        "priority": draw.choice([-10, 0, 0, 0, 10]),
        "spec": spec | {"name": name},
        "spec_hash": f"{number:064x}",
        "demand": rows.demand_document(Demand.of(2, CPU=1, memory=4e9)),
        "state": state,
        "reason": "",
        "submitted_ms": submitted_ms,
        "not_before_ms": 0,
        "started_ms": submitted_ms + wait_ms,
        "ended_ms": submitted_ms + wait_ms + run_ms,
        "cause": {"SUCCEEDED": None, "FAILED": "user_code", "CANCELLED": "cancelled"}[state],
        "detail": None if state == "SUCCEEDED" else "the loss was not a number in step 1200",
        "run_id": job_id,
        "run_dir": f"/storage/runs/{job_id}",
        "has_code": False,
        "submitted_by": "ada",
        "failures": ["worker_lost"] * twice,
        "num_attempts": 1 + twice,
        "idempotency_key": f"key-{number}",
        "body_digest": f"{number:064x}",
    }


def attempts_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    last = job["num_attempts"]
    for number in range(1, last + 1):
        done = number == last
        begun_ms = job["started_ms"] + (number - 1) * 5000
        found.append(
            {
                "submission_id": f"{job['id']}-{number}",
                "job_id": job["id"],
                "number": number,
                "state": "ENDED" if done else "LOST",
                "action": "run" if number == 1 else "resume",
                "placement": ["node-01", "node-02"],
                "run_dir": job["run_dir"],
                "epoch": 1,
                "planned_ms": begun_ms,
                "submitted_ms": begun_ms + 100,
                "alive_ms": begun_ms + 3000,
                "ended_ms": job["ended_ms"] if done else begun_ms + 4000,
                "outcome": job["state"].lower() if done else "lost",
                "cause": job["cause"] if done else "worker_lost",
                "cluster_id": "session_1",
            }
        )
    return found


def tell(transaction: Transaction, job: dict[str, Any], attempts: list[dict[str, Any]]) -> int:
    """The events of the job's life; how many."""
    told: list[tuple[str, dict[str, Any]]] = [("job", {"old": None, "new": "QUEUED", "by": job["submitted_by"]})]
    old = "QUEUED"
    for one in attempts:
        name = {"submission_id": one["submission_id"]}
        told.append(("job", {"old": old, "new": "STARTING"}))
        told.append(("attempt", name | {"old": None, "new": "PLANNED"}))
        told.append(("attempt", name | {"old": "PLANNED", "new": "SUBMITTED"}))
        told.append(("attempt", name | {"old": "SUBMITTED", "new": "ALIVE"}))
        told.append(("job", {"old": "STARTING", "new": "RUNNING"}))
        told.append(("attempt", name | {"old": "ALIVE", "new": one["state"], "outcome": one["outcome"]}))
        to = job["state"] if one is attempts[-1] else "RECOVERING"
        told.append(("job", {"old": "RUNNING", "new": to}))
        old = to
    for kind, data in told:
        transaction.event(kind, project=job["project"], job_id=job["id"], **data)
    return len(told)


def fill(store: Store, count: int) -> tuple[list[str], int]:
    """The ids, oldest first, and the number of events."""
    draw, specs = random.Random(0), documents()
    first_ms = store.now_ms() - count * GAP_MS
    ids: list[str] = []
    events = 0

    def write(transaction: Transaction, batch: list[dict[str, Any]]) -> int:
        attempts = [attempts_of(job) for job in batch]
        transaction.connection.execute(insert(tables.jobs), batch)
        transaction.connection.execute(insert(tables.attempts), [one for some in attempts for one in some])
        return sum(tell(transaction, job, own) for job, own in zip(batch, attempts, strict=True))

    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        batch = [finished(n, first_ms + n * GAP_MS, specs[n % len(specs)], draw) for n in numbers]
        events += store.database.write(lambda transaction, batch=batch: write(transaction, batch))
        ids += [job["id"] for job in batch]
    if not store.database.is_sqlite:
        store.database.write(lambda transaction: transaction.connection.execute(text("ANALYZE")))
    return ids, events


def queries(store: Store, ids: list[str]) -> dict[str, Callable[[int], int]]:
    """What is measured: each gets the number of its round, and returns how many records it got."""
    count, limit = len(ids), DATA["page"]
    now_ms = store.now_ms()
    half = f"{now_ms - count * GAP_MS // 2}~"
    last = f"{now_ms - (count - limit) * GAP_MS}~"
    unhappy = JobState.FAILED, JobState.CANCELLED

    def page(cursor: str | None = None, **which: Any) -> int:
        return len(store.list_jobs(JobFilter(**which), limit, cursor and cursor + "z").items)

    def project(turn: int) -> str:
        return f"project-{turn % DATA['projects']}"

    def name(turn: int) -> str:
        return f"job-{turn * 7 % DATA['names']:03}"

    def describe(turn: int) -> int:
        job_id = ids[turn * 7919 % count]
        return int(store.job(job_id) is not None) + len(store.attempts(job_id))

    return {
        "list": lambda _: page(),
        "list, half way down": lambda _: page(half),
        "list, last page": lambda _: page(last),
        "list of a project": lambda turn: page(projects=(project(turn),)),
        "list of three projects": lambda turn: page(projects=tuple(project(turn + i) for i in range(3))),
        "list of a state": lambda turn: page(states=(unhappy[turn % 2],)),
        "list of states that none has": lambda _: page(states=(JobState.QUEUED, JobState.RUNNING)),
        "list of a project and states": lambda turn: page(projects=(project(turn),), states=unhappy),
        "list of a project and a state, half way down": lambda turn: page(
            half, projects=(project(turn),), states=(JobState.FAILED,)
        ),
        "list of a name": lambda turn: page(name=name(turn)),
        "list of a name and states": lambda turn: page(name=name(turn), states=unhappy),
        "list of a name, none has it": lambda _: page(name="nobody"),
        "list since an hour ago": lambda _: page(since_ms=now_ms - 3_600_000),
        "list of a project since ten days ago": lambda turn: page(
            projects=(project(turn),), since_ms=now_ms - 864_000_000
        ),
        "describe": describe,
        "events of a job": lambda turn: len(store.events(ids[turn * 7919 % count])),
    }


def measure(store: Store, count: int, rounds: int) -> dict[str, Any]:
    begun = time.perf_counter()
    ids, events = fill(store, count)
    fill_s = time.perf_counter() - begun
    found: dict[str, dict[str, float]] = {}
    for name, query in queries(store, ids).items():
        records, milliseconds, cpu_ms = [], [], []
        for turn in range(rounds):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            records.append(query(turn))
            milliseconds.append(1e3 * (time.perf_counter() - begun))
            cpu_ms.append(1e3 * (time.process_time() - begun_cpu))
        milliseconds.sort()
        cpu_ms.sort()
        at95 = min(rounds - 1, int(0.95 * rounds))
        found[name] = {
            "records": sum(records) / rounds,
            "median_ms": milliseconds[rounds // 2],
            "p95_ms": milliseconds[at95],
            "cpu_p95_ms": cpu_ms[at95],
        }
    return {"fill_s": fill_s, "events": events, "queries": found, "p95_ms": max(q["p95_ms"] for q in found.values())}


@contextmanager
def opened(database: str) -> Iterator[Store]:
    with ExitStack() as stack:
        if database == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thresher-store-"))
            url = f"sqlite:///{folder}/thresher.db"
        else:
            url = address(stack.enter_context(running_server()), "postgres")
        yield stack.enter_context(Store.open(url))


def broken_limits(result: dict[str, Any]) -> list[str]:
    broken = []
    for database, found in result["databases"].items():
        most = DATA["thresholds"]["fill_s"]["at_most"]
        if found["fill_s"] > most:
            broken.append(f"{database}: writing the jobs took {found['fill_s']:.0f} s, must be at most {most}")
        most = DATA["thresholds"]["p95_ms"]["at_most"]
        for name, query in found["queries"].items():
            if query["p95_ms"] > most:
                broken.append(f"{database}: {name}: p95 is {query['p95_ms']:.1f} ms, must be at most {most}")
    return broken


def show(result: dict[str, Any]) -> None:
    for database, found in result["databases"].items():
        title = f"{database}: {result['jobs']:,} jobs, {found['events']:,} events, written in {found['fill_s']:.0f} s"
        table = Table("query", "records", "median ms", "p95 ms", "p95 of CPU ms", title=title)
        for name, query in found["queries"].items():
            table.add_row(name, *(f"{query[one]:.1f}" for one in ("records", "median_ms", "p95_ms", "cpu_p95_ms")))
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=DATA["jobs"])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--database", action="append", choices=DATABASES, help="default: both")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"jobs": arguments.jobs, "databases": {}}
    for database in arguments.database or DATABASES:
        with opened(database) as store:
            result["databases"][database] = measure(store, arguments.jobs, arguments.rounds)
    broken = broken_limits(result)
    if arguments.json:
        print(json.dumps(result | {"broken_limits": broken}))
    else:
        show(result)
        for line in broken:
            print(line)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
