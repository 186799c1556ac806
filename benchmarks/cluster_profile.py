"""A profile of this machine for `thresher plan --cluster`: what its CPUs compute, and send to each other.

    python benchmarks/cluster_profile.py [--name two-cores] [--rounds 7] [--json] > examples/clusters/two-cores.yaml

TFLOP/s is the median of products of two 1024 × 1024 matrices in one thread, in processor time; bytes a second are those
of an all-reduce of 64 MB between two processes, by the process group that trainings use; latency is that of one of 4
bytes, which takes two messages. Of the all-reduces the best counts: what other processes take is not the links'.

With --json also the steps of trainings on one worker, measured (by the clock, and in processor time, which other
processes disturb less) and as the profile plans them.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jobs import data
from jobs.context import LocalContext
from jobs.layout import ParallelLayout
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile
from orchestrator.planning.cluster_plan import plan_on_cluster
from orchestrator.runs import Storage

TIMEOUT_S = 300
SIDE = 1024
LARGE, SMALL = 16_000_000, 1
"""Values of fp32 that two processes sum."""
WORKLOADS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "args": {"hidden": [1024, 1024, 1024]}},
    "resnet": {"name": "resnet", "args": {"depth": 20}},
}
STEPS = 30


def product_seconds(rounds: int) -> float:
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    torch.mm(left, right)
    return statistics.median(_timed(lambda: torch.mm(left, right), time.process_time) for _ in range(3 * rounds))


def sum_seconds(rank: int, port: int, rounds: int) -> dict[int, float]:
    """In each of two processes: the shortest time of an all-reduce, by its number of values."""
    import torch
    from deepspeed import comm

    from jobs.train.mesh import warm_up

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    warm_up(LocalContext(rank=rank, size=2))
    found = {}
    for values in (LARGE, SMALL):
        tensor = torch.ones(values)
        comm.all_reduce(tensor)
        times = rounds if values == LARGE else 50 * rounds
        found[values] = min(_timed(partial(comm.all_reduce, tensor)) for _ in range(times))
    comm.destroy_process_group()
    return found


def _timed(work: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started


def measure(name: str, rounds: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What DeepSpeed prints would stand in the profile.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=os.dup2, initargs=(2, 1)) as pool:
        sums = [pool.submit(sum_seconds, rank, port, rounds) for rank in range(2)]
        seconds = sums[0].result(TIMEOUT_S)
    cpus = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": name,
        "nodes": 1,
        "gpus_per_node": 0,
        "cpus_per_node": cpus,
        "memory_gb": round(memory / cpus / 1e9, 1),
        "tflops": {"fp32": float(f"{2 * SIDE**3 / product_seconds(rounds) / 1e12:.3g}")},
        "within_gb_per_s": float(f"{4 * LARGE / seconds[LARGE] / 1e9:.3g}"),
        "latency_us": {"within": float(f"{seconds[SMALL] / 2 * 1e6:.3g}")},
    }


def compare(profile: ClusterProfile, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of each workload on one worker: planned, and measured through the whole loop."""
    from jobs.train.mesh import warm_up
    from jobs.train.work import train

    warm_up(LocalContext())
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for workload, model in WORKLOADS.items():
            spec = JobSpec.parse(
                {
                    "name": workload,
                    "data": {"source": {"kind": "builtin", "name": "digits"}},
                    "model": model,
                    "train": {"steps": STEPS, "batch_size": 128, "checkpoint": {"every_steps": 10**9}},
                }
            )
            dataset = Path(name) / data.fingerprint(spec.data, spec.train.loss)
            if not dataset.exists():
                data.prepare(spec.data, spec.train.loss, dataset)
            planned = plan_on_cluster(spec, profile, Storage.at(name)).chosen
            recipe = Recipe(spec.train, spec.data, spec.metric, layout=ParallelLayout())
            clock, processor = [], []
            for turn in range(rounds + 1):  # the first warms up
                request = TrainRequest(spec.resolved()["model"], recipe, dataset, Path(name) / f"{workload}-{turn}")
                started = time.process_time()
                clock.append(train(LocalContext(), request)["productive_s"] / STEPS)
                processor.append((time.process_time() - started) / STEPS)
            by_clock, in_processor = statistics.median(clock[1:]), statistics.median(processor[1:])
            found[workload] = {
                "planned_ms": 1e3 * planned.step_s,
                "measured_ms": 1e3 * by_clock,
                "processor_ms": 1e3 * in_processor,  # with building the model, validation and writing it
                "measured_to_planned": by_clock / planned.step_s,
                "processor_to_planned": in_processor / planned.step_s,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="two-cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.name, arguments.rounds)
    if arguments.json:
        steps = compare(ClusterProfile.parse(found), max(1, arguments.rounds // 2))
        print(json.dumps({"profile": found, "steps": steps}))
        return
    print("# Measured by benchmarks/cluster_profile.py, which says how.")
    for key, value in found.items():
        shown = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else value
        print(f"{key}: {shown}")


if __name__ == "__main__":
    main()
