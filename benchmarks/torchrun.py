"""The same DeepSpeed loop under plain torchrun and on a Thresher gang: two workers, global batch 128.

    python benchmarks/torchrun.py [--rounds 5] [--json]

Two workloads: a residual network, whose steps take as long as real ones, and a tiny LeNet, whose steps of a few
milliseconds are mostly waiting for each other.

The work is the same function; what differs is who started the processes, and that a gang reports while it works.
Seconds are those of the training itself, without start-up: there the gang's lead would be trivial.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.connect import connect
from cluster.gang import Gang
from cluster.workers import run_work
from jobs import data
from jobs.context import LocalContext, WorkRef
from jobs.layout import ParallelLayout
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec

TIMEOUT_S = 600


WORKLOADS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet-20": ({"name": "resnet", "args": {"depth": 20}}, 40),
    "lenet": ({"name": "lenet", "args": {"conv_widths": [16, 32]}}, 600),
}
"""By name: the model, and how many steps to time."""


def request_for(workload: str, dataset: Path, folder: Path, steps: int | None = None) -> TrainRequest:
    model, usual = WORKLOADS[workload]
    spec = JobSpec.parse(
        {
            "name": "torchrun",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": model,
            "train": {"steps": steps or usual, "batch_size": 128, "checkpoint": {"every_steps": 10**9}},
        }
    )
    if not dataset.exists():
        data.prepare(spec.data, spec.train.loss, dataset)
    recipe = Recipe(spec.train, spec.data, spec.metric, layout=ParallelLayout(data=2))
    return TrainRequest(spec.resolved()["model"], recipe, dataset, folder)


def as_rank(workload: str, dataset: Path, folder: Path) -> None:
    """What torchrun starts in each process."""
    from jobs.train.work import train

    context = LocalContext(rank=int(os.environ["RANK"]), size=int(os.environ["WORLD_SIZE"]))
    result = train(context, request_for(workload, dataset, folder))
    if context.rank == 0:
        print(json.dumps({"seconds": result["productive_s"]}))


def under_torchrun(workload: str, dataset: Path, folder: Path) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    command += ["--as-rank", workload, str(dataset), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def measure(rounds: int) -> dict[str, Any]:
    """Seconds by workload and by who started the processes, in turns."""
    found: dict[str, Any] = {"rounds": rounds}
    with tempfile.TemporaryDirectory() as name, connect(None, num_cpus=2):
        folder = Path(name)
        dataset = folder / "dataset"
        request_for("lenet", dataset, folder)
        with Gang(2, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
            train = WorkRef("jobs.train.work:train")
            for workload, (_, steps) in WORKLOADS.items():
                # torchrun's processes warm up in their own start-up
                run_work(gang, train, request_for(workload, dataset, folder / f"warm-{workload}", steps=5))
                seconds: dict[str, list[float]] = {"torchrun": [], "thresher": []}
                for turn in range(rounds):
                    there = folder / f"torchrun-{workload}-{turn}"
                    seconds["torchrun"].append(under_torchrun(workload, dataset, there))
                    request = request_for(workload, dataset, folder / f"gang-{workload}-{turn}")
                    seconds["thresher"].append(run_work(gang, train, request)["productive_s"])
                ratios = [a / b for a, b in zip(seconds["torchrun"], seconds["thresher"], strict=True)]
                found[workload] = {
                    "steps": steps,
                    "ms_per_step": {who: 1e3 * statistics.median(values) / steps for who, values in seconds.items()},
                    "throughput_ratio": statistics.median(ratios),
                    "throughput_ratios": ratios,
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-rank", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        workload, dataset, folder = arguments.as_rank
        as_rank(workload, Path(dataset), Path(folder))
        return
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table(title=f"digits, 2 workers, batch 128: median of {result['rounds']} rounds")
    for column in ("model", "torchrun, ms a step", "thresher, ms a step", "throughput"):
        table.add_column(column, justify="right")
    for workload in WORKLOADS:
        times = result[workload]["ms_per_step"]
        ratio = result[workload]["throughput_ratio"]
        table.add_row(workload, f"{times['torchrun']:.2f}", f"{times['thresher']:.2f}", f"{ratio:.2f}×")
    Console().print(table)


if __name__ == "__main__":
    main()
