"""From a submission to the first line that its driver writes: through the service, and through Ray's Jobs API alone.

    python benchmarks/submit_latency.py [--rounds 5] [--nodes 1] [--json]

A local cluster with nothing else to do, and a `thresher serve` on it. In turns one job is submitted with
`Client.submit` and one with Ray's `JobSubmissionClient.submit_job`; both run the same command on a folder with one
spec, which differs in its seed, so that Ray has seen neither folder before. What is measured ends with the first
event in the run directory; then the job is stopped, and has ended before the next one is submitted. The first of each
kind is not counted. Of a job through the service, the moments on its way are shown too, from its rows in the store.
`submit_latency.json` holds the spec, and the limit for the ratio of the medians.
Needs what the tests need. Ends with 1 when the limit does not hold.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobSubmissionClient
from rich.console import Console
from rich.table import Table

from cluster.local import LocalCluster
from orchestrator.client import Client
from orchestrator.controller.controller import SPEC_NAME, entrypoint
from orchestrator.runs import read_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests are not installed
from tests.service.conftest import start

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())
WITHIN_S = 180.0
POLL_S = 0.05
IDLE_S = 2.0
"""After a job, until Ray has put its processes away."""


class Bench:
    """A cluster, a service on it, and the two ways to it."""

    def __init__(self, cluster: LocalCluster, folder: Path, client: Client) -> None:
        self.cluster, self.folder, self.client = cluster, folder, client
        self.runs = folder / "runs"
        headers = {"Authorization": f"Bearer {cluster.token_path.read_text()}"}
        self.ray = JobSubmissionClient(str(cluster.dashboard), headers=headers)
        self.number = 0
        self.moments: dict[str, list[float]] = {}

    def spec(self) -> dict[str, Any]:
        self.number += 1
        return DATA["spec"] | {"train": DATA["spec"]["train"] | {"seed": self.number}}

    def thresher(self) -> float:
        spec = self.spec()
        begun = time.time()
        job = self.client.submit(spec)
        seen = self.seen(job.id, begun)
        self.client.cancel(job.id)
        ended = self.client.wait(job.id, timeout_s=WITHIN_S)
        if ended.state != "CANCELLED":
            raise SystemExit(f"{job.id} is {ended.state}: {ended.cause} {ended.detail}")
        (attempt,) = ended.attempts
        moments = {"stored": ended.submitted_ms, "planned": attempt.planned_ms, "submitted": attempt.submitted_ms}
        moments["in Ray"] = self.ray.get_job_info(f"{job.id}-1").start_time
        for name, at_ms in moments.items():
            self.moments.setdefault(name, []).append((at_ms or 0) / 1000 - begun)
        return seen

    def bare(self) -> float:
        spec = self.spec()
        name = f"bare-{self.number}"
        folder = self.folder / name
        folder.mkdir()
        (folder / SPEC_NAME).write_text(yaml.safe_dump(spec, sort_keys=False))
        command = entrypoint(self.runs, name, "run")
        begun = time.time()
        self.ray.submit_job(entrypoint=command, submission_id=name, runtime_env={"working_dir": str(folder)})
        seen = self.seen(name, begun)
        self.ray.stop_job(name)
        deadline = time.monotonic() + WITHIN_S
        while not (status := self.ray.get_job_status(name)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        if status.value != "STOPPED":
            raise SystemExit(f"{name} is {status.value}: {self.ray.get_job_logs(name)[-2000:]}")
        return seen

    def seen(self, run_id: str, begun: float) -> float:
        """Seconds until the run's driver said that it was there; by the clock of this machine."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            if lines := read_lines(self.runs / run_id / "events.jsonl"):
                return float(lines[0]["t"]) - begun
            time.sleep(POLL_S)
        raise SystemExit(f"the driver of {run_id} wrote nothing within {WITHIN_S:g} s")


@contextmanager
def bench(nodes: int) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="thresher-latency-") as name,
        LocalCluster(nodes, cpus_per_node=DATA["cpus_per_node"]) as cluster,
    ):
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        options = ("--ray", str(cluster.dashboard), "--rate", "0")
        process, said = start(
            folder / "runs", folder / "serve.log", 0, *options, env=env | cluster.client_environment, api_only=False
        )
        try:
            with Client(said["url"], said["token"]) as client:
                yield Bench(cluster, folder, client)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(nodes: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"thresher": [], "ray": []}
    with bench(nodes) as both:
        ways = {"thresher": both.thresher, "ray": both.bare}
        for turn in range(rounds + 1):
            # Who comes first changes from round to round.
            for name in sorted(ways, reverse=bool(turn % 2)):
                seen = ways[name]()
                if turn:
                    found[name].append(seen)
                time.sleep(IDLE_S)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "nodes": nodes,
        "first_line_s": found,
        "median_s": medians,
        "moments_s": {name: statistics.median(values[1:]) for name, values in both.moments.items()},
        "ratio": medians["thresher"] / medians["ray"],
    }


def show(result: dict[str, Any]) -> None:
    table = Table("seconds from the submission to", "thresher", "Ray alone", "ratio", title="an idle cluster")
    own, other = (result["median_s"][name] for name in ("thresher", "ray"))
    table.add_row("the driver's first line", f"{own:.2f}", f"{other:.2f}", f"{result['ratio']:.2f}")
    for name, median in result["moments_s"].items():
        table.add_row(f"… {name}", f"{median:.2f}", "", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=DATA["nodes"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.nodes, max(1, arguments.rounds))
    most = DATA["thresholds"]["ratio"]["at_most"]
    broken = [f"ratio is {result['ratio']:.3g}, must be at most {most}"] if result["ratio"] > most else []
    if arguments.json:
        print(json.dumps(result | {"broken_limits": broken}))
    else:
        show(result)
        for line in broken:
            print(line)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
