"""The same DeepSpeed loop under plain torchrun and on a Thresher gang: two workers, LeNet, global batch 128.

    python benchmarks/torchrun.py [--steps 300] [--rounds 3] [--json]

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


def request_for(steps: int, dataset: Path, folder: Path) -> TrainRequest:
    spec = JobSpec.parse(
        {
            "name": "torchrun",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "lenet", "args": {"conv_widths": [16, 32]}},
            "train": {"steps": steps, "batch_size": 128, "checkpoint": {"every_steps": 10**9}},
        }
    )
    if not dataset.exists():
        data.prepare(spec.data, spec.train.loss, dataset)
    recipe = Recipe(spec.train, spec.data, spec.metric, layout=ParallelLayout(data=2))
    return TrainRequest(spec.resolved()["model"], recipe, dataset, folder)


def as_rank(steps: int, dataset: Path, folder: Path) -> None:
    """What torchrun starts in each process."""
    from jobs.train.work import train

    context = LocalContext(rank=int(os.environ["RANK"]), size=int(os.environ["WORLD_SIZE"]))
    result = train(context, request_for(steps, dataset, folder))
    if context.rank == 0:
        print(json.dumps({"seconds": result["productive_s"]}))


def under_torchrun(steps: int, dataset: Path, folder: Path) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    command += ["--as-rank", str(dataset), str(folder), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def measure(steps: int, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"torchrun": [], "thresher": []}
    with tempfile.TemporaryDirectory() as name, connect(None, num_cpus=2):
        folder = Path(name)
        dataset = folder / "dataset"
        request_for(steps, dataset, folder)
        with Gang(2, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
            for turn in range(rounds):
                seconds["torchrun"].append(under_torchrun(steps, dataset, folder / f"torchrun-{turn}"))
                request = request_for(steps, dataset, folder / f"gang-{turn}")
                if turn == 0:  # torchrun's processes warm up in their own start-up
                    run_work(gang, WorkRef("jobs.train.work:train"), request_for(20, dataset, folder / "warm"))
                result = run_work(gang, WorkRef("jobs.train.work:train"), request)
                seconds["thresher"].append(result["productive_s"])
    ratios = [a / b for a, b in zip(seconds["torchrun"], seconds["thresher"], strict=True)]
    return {
        "steps": steps,
        "rounds": rounds,
        "ms_per_step": {who: 1e3 * statistics.median(values) / steps for who, values in seconds.items()},
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-rank", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        as_rank(arguments.steps, *arguments.as_rank)
        return
    result = measure(arguments.steps, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table(title=f"LeNet on digits, 2 workers, batch 128: median of {result['rounds']} rounds")
    for column in ("started by", "ms a step", "throughput"):
        table.add_column(column, justify="right")
    for who, value in result["ms_per_step"].items():
        table.add_row(who, f"{value:.2f}", f"{1.0 if who == 'torchrun' else result['throughput_ratio']:.2f}×")
    Console().print(table)


if __name__ == "__main__":
    main()
