"""The queue against a published workload, in simulated time; and the time that one decision takes on a large cluster.

    python benchmarks/queue_sim.py [--pools 5] [--rounds 15] [--json]

The workload is the baseline of Kueue's scalability tests: 5 pools × 6 projects with 20 CPU each, and a stream of small,
medium and large jobs that preempt one another; an evicted job starts over. It is in `queue_sim.json`, the limits that
must hold beside it. A job of n CPU is a gang of n workers with one CPU, on nodes of 20 CPU. Time is simulated: what is
measured is what the decisions are worth, and how long they take to make; not how fast a cluster carries them out.
Times of decisions are CPU time: they are made in one thread and wait for nothing.
Ends with 1 when a limit does not hold.
"""

import argparse
import heapq
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.scheduling import (
    Demand,
    Gang,
    Job,
    Node,
    Pending,
    Policy,
    Preempt,
    Project,
    Quota,
    Snapshot,
    Start,
    Wait,
    apply,
    decide,
    milli,
)

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())


def arrivals(pools: int) -> Iterator[tuple[int, str, Job]]:
    """(time, class, job): every class of every project is a stream of its own."""
    workload = DATA["workload"]
    for pool in range(pools):
        for number in range(workload["projects_per_pool"]):
            project = f"pool-{pool}-{number}"
            for kind in workload["classes"]:
                for index in range(kind["count"]):
                    at_ms = index * kind["every_ms"]
                    name = f"{project}-{kind['name']}-{index:03}"
                    demand = Demand.of(kind["cpu"], CPU=1)
                    yield at_ms, kind["name"], Job(name, project, demand, kind["priority"], at_ms, kind["run_ms"])


@dataclass
class Simulation:
    """A cluster that does at once what is decided, and ends each job when it has run its time."""

    pools: int
    now_ms: int = 0
    pending: dict[str, Pending] = field(default_factory=dict)
    gangs: dict[str, Gang] = field(default_factory=dict)
    evictions: Counter[str] = field(default_factory=Counter)
    wasted_cpu_ms: int = 0
    used_cpu_ms: int = 0
    decision_s: list[float] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        workload = DATA["workload"]
        quota = Quota(milli({"CPU": workload["nominal_cpu"]}), milli({"CPU": workload["borrowing_limit_cpu"]}))
        names = [(p, n) for p in range(self.pools) for n in range(workload["projects_per_pool"])]
        self.projects = tuple(Project(f"pool-{p}-{n}", quota, pool=f"pool-{p}") for p, n in names)
        self.nodes = tuple(Node(f"node-{i:02}", milli({"CPU": workload["nominal_cpu"]})) for i in range(len(names)))
        self.kind: dict[str, str] = {}
        self.waits: dict[str, list[int]] = defaultdict(list)

    def run(self) -> None:
        coming = [(at_ms, job.id, job) for at_ms, kind, job in arrivals(self.pools) if not self._note(job, kind)]
        heapq.heapify(coming)
        ends: list[tuple[int, str]] = []
        while coming or self.pending or self.gangs:
            self.now_ms = min(queue[0][0] for queue in (coming, ends) if queue)
            while coming and coming[0][0] == self.now_ms:
                job = heapq.heappop(coming)[2]
                self.pending[job.id] = Pending(job)
            while ends and ends[0][0] == self.now_ms:
                name = heapq.heappop(ends)[1]
                gang = self.gangs.get(name)
                if gang and gang.started_ms + (gang.job.limit_ms or 0) == self.now_ms:
                    del self.gangs[name]
                    self.done += 1
                    self.used_cpu_ms += gang.job.demand.workers * (gang.job.limit_ms or 0)
            for name in self._settle():
                heapq.heappush(ends, (self.now_ms + (self.gangs[name].job.limit_ms or 0), name))

    def _note(self, job: Job, kind: str) -> None:
        self.kind[job.id] = kind

    def _settle(self) -> list[str]:
        """Decisions until there are none: victims leave at once here, so who waited for them starts now."""
        started = []
        while True:
            snapshot = Snapshot(
                self.now_ms,
                self.nodes,
                tuple(self.gangs.values()),
                tuple(self.pending.values()),
                self.projects,
                Policy(grace_ms=0),
            )
            begun = time.process_time()
            decisions = decide(snapshot)
            self.decision_s.append(time.process_time() - begun)
            for decision in decisions:
                if isinstance(decision, Start):
                    job = self.pending.pop(decision.job).job
                    self.gangs[job.id] = Gang(job, decision.placement, self.now_ms)
                    self.waits[self.kind[job.id]].append(self.now_ms - job.submitted_ms)
                    started.append(job.id)
                elif isinstance(decision, Wait):
                    old = self.pending[decision.job]
                    self.pending[decision.job] = Pending(old.job, claim=old.claim, reason=decision.reason)
            claims = [decision for decision in decisions if isinstance(decision, Preempt)]
            for claim in claims:
                old = self.pending[claim.for_job]
                self.pending[claim.for_job] = Pending(old.job, claim=claim.placement, reason=old.reason)
                for victim in claim.victims:
                    self._evict(victim)
            if not claims:
                return [name for name in started if name in self.gangs]

    def _evict(self, name: str) -> None:
        gang = self.gangs.pop(name)
        kind = self.kind[name]
        self.evictions[kind] += 1
        self.waits[kind].remove(gang.started_ms - gang.job.submitted_ms)
        self.wasted_cpu_ms += gang.job.demand.workers * (self.now_ms - gang.started_ms)
        self.pending[name] = Pending(gang.job)


def simulate(pools: int) -> dict[str, Any]:
    workload = DATA["workload"]
    simulation = Simulation(pools)
    begun = time.process_time()
    simulation.run()
    cpu_s = time.process_time() - begun
    cpu_ms = sum(kind["cpu"] * kind["count"] * kind["run_ms"] for kind in workload["classes"])
    ideal_ms = cpu_ms / workload["nominal_cpu"]
    last = simulation.now_ms
    cpus = len(simulation.nodes) * workload["nominal_cpu"]
    decisions = simulation.decision_s
    return {
        "jobs_done": simulation.done,
        "makespan_s": last / 1000,
        "makespan_over_ideal": last / ideal_ms,
        "usage": simulation.used_cpu_ms / (cpus * last),
        "mean_wait_s": {kind: statistics.mean(waits) / 1000 for kind, waits in simulation.waits.items()},
        "evictions": dict(simulation.evictions),
        "wasted_over_useful": simulation.wasted_cpu_ms / simulation.used_cpu_ms,
        "decisions": len(decisions),
        "us_per_decision": {
            "median": 1e6 * statistics.median(decisions),
            "p99": 1e6 * statistics.quantiles(decisions, n=100)[98],
        },
        "cpu_s": cpu_s,
    }


def large_snapshot(seed: int = 0, pending: int = 10_000, running: int = 1000, nodes: int = 1000) -> Snapshot:
    """A full cluster with a long queue: 16 CPU a node, a quarter with 4 GPUs, 20 projects in 4 pools."""
    draw = random.Random(seed)
    machines = [
        Node(f"node-{i:04}", milli({"CPU": 16, "memory": 64e9} | ({"GPU": 4} if i % 4 == 0 else {})))
        for i in range(nodes)
    ]
    quota = Quota(milli({"CPU": 16 * nodes / 20, "GPU": nodes / 20}))
    projects = [Project(f"project-{i:02}", quota, pool=f"pool-{i % 4}", weight=1 + i % 3) for i in range(20)]
    shapes = [(1, 1, 0), (1, 4, 0), (4, 2, 0), (2, 8, 0), (1, 4, 1), (2, 4, 2), (1, 8, 4), (8, 8, 0)]

    def job(name: str) -> Job:
        workers, cpu, gpu = draw.choice(shapes)
        demand = Demand.of(workers, CPU=cpu, memory=4e9, **({"GPU": gpu} if gpu else {}))
        limit_ms = draw.choice([None, 3_600_000, 86_400_000])
        priority = draw.choice([-10, 0, 0, 0, 10])
        return Job(name, draw.choice(projects).name, demand, priority, draw.randrange(10**6), limit_ms)

    def start(gangs: list[Gang], wanted: list[Job]) -> list[Gang]:
        waiting = tuple(Pending(one) for one in wanted)
        snapshot = Snapshot(10**6, tuple(machines), tuple(gangs), waiting, tuple(projects))
        places = {decision.job: decision.placement for decision in decide(snapshot) if isinstance(decision, Start)}
        return [Gang(one, places[one.id], 10**6) for one in wanted if one.id in places]

    # As many gangs as start on the idle cluster; then small ones, where there is room, up to the number wanted.
    gangs = start([], [job(f"run-{i:05}") for i in range(running)])
    small = Demand.of(1, CPU=1)
    missing = range(running - len(gangs))
    gangs += start(gangs, [Job(f"fill-{i:05}", projects[i % 20].name, small, 10, 0, 3_600_000) for i in missing])
    queue = tuple(Pending(job(f"wait-{i:05}")) for i in range(pending))
    return Snapshot(2 * 10**6, tuple(machines), tuple(gangs), queue, tuple(projects))


def settled(snapshot: Snapshot) -> Snapshot:
    """After all that can be started was, and what was evicted has left: the state that a long queue is mostly in."""
    while True:
        decisions = decide(snapshot)
        snapshot = apply(snapshot, decisions)
        left = tuple(gang for gang in snapshot.gangs if gang.leaving_since_ms is None)
        back = tuple(Pending(gang.job) for gang in snapshot.gangs if gang.leaving_since_ms is not None)
        if not back:
            return snapshot
        snapshot = replace(snapshot, gangs=left, pending=snapshot.pending + back)


def speed(rounds: int) -> dict[str, Any]:
    """Milliseconds of one `decide`: with nothing to start, and when a gang has just left."""
    first = large_snapshot()
    begun = time.process_time()
    decide(first)
    crowded_ms = 1e3 * (time.process_time() - begun)
    steady = settled(first)
    times: dict[str, list[float]] = {"nothing to do": [], "one gang left": []}
    for turn in range(rounds):
        after = replace(steady, gangs=steady.gangs[:turn] + steady.gangs[turn + 1 :])
        for name, snapshot in (("nothing to do", steady), ("one gang left", after)):
            begun = time.process_time()
            decide(snapshot)
            times[name].append(1e3 * (time.process_time() - begun))
    every = [one for values in times.values() for one in values]
    return {
        "nodes": len(first.nodes),
        "running": len(first.gangs),
        "pending": len(first.pending),
        "running_settled": len(steady.gangs),
        "pending_settled": len(steady.pending),
        "decide_ms": {name: statistics.median(values) for name, values in times.items()},
        "decide_ms_median": statistics.median(every),
        "decide_ms_first": crowded_ms,
    }


def broken_limits(result: dict[str, Any]) -> list[str]:
    broken = []
    for name, limit in DATA["thresholds"].items():
        value = result[name]
        if value > limit.get("at_most", value) or value < limit.get("at_least", value):
            broken.append(f"{name} is {value:.4g}, must be {limit}")
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=DATA["workload"]["pools"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = simulate(arguments.pools) | speed(arguments.rounds)
    broken = broken_limits(result)
    if arguments.json:
        print(json.dumps(result | {"broken_limits": broken}))
    else:
        show(result)
        for line in broken:
            print(line)
    sys.exit(bool(broken))


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['jobs_done']:,} jobs in simulated time", show_header=False)
    rows = {
        "jobs done": f"{result['jobs_done']:,}",
        "makespan": f"{result['makespan_s']:.1f} s, {result['makespan_over_ideal']:.2f} × ideal",
        "CPUs in use": f"{100 * result['usage']:.1f} %",
        "mean wait": ", ".join(f"{kind} {wait:.2f} s" for kind, wait in sorted(result["mean_wait_s"].items())),
        "evictions": ", ".join(f"{kind} {count:,}" for kind, count in sorted(result["evictions"].items())) or "none",
        "work thrown away": f"{100 * result['wasted_over_useful']:.1f} % of what was useful",
        "one decision": "{median:,.0f} µs (99 %: {p99:,.0f})".format(**result["us_per_decision"]),
        "decisions": f"{result['decisions']:,} in {result['cpu_s']:.0f} s",
    }
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
    large = Table(
        title=f"`decide` with {result['pending']:,} jobs waiting, {result['nodes']:,} nodes", show_header=False
    )
    for name, value in result["decide_ms"].items():
        large.add_row(name, f"{value:.1f} ms")
    large.add_row("first call, with all to be started", f"{result['decide_ms_first']:.0f} ms")
    Console().print(large)


if __name__ == "__main__":
    main()
