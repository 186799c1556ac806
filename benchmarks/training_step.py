"""A training step through the whole stack against plain torch: one worker, LeNet (6-16-120-84), batch 64.

    python benchmarks/training_step.py [--steps 300] [--rounds 5] [--json]

Both run in the same warm Ray worker, in turns, on the same images (28×28), with AdamW and one validation at the end.
Plain torch gets what is best for it: all images as one normalized tensor in memory, batches by indexing. Thresher
decodes, normalizes and orders on the way, checks its losses, and runs DeepSpeed.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.connect import connect
from cluster.gang import Gang
from cluster.workers import run_work
from jobs import data
from jobs.context import WorkRef
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec

FASHION = Path("data/fashion-mnist")


def spec_for(steps: int) -> JobSpec:
    source = {"kind": "idx", "path": str(FASHION)} if FASHION.is_dir() else {"kind": "builtin", "name": "digits"}
    return JobSpec.parse(
        {
            "name": "training-step",
            "data": {"source": source},
            "model": {"name": "lenet"},
            "train": {
                "steps": steps,
                "batch_size": 64,
                "optimizer": {"name": "adamw"},
                "checkpoint": {"every_steps": 10**9},
            },
        }
    )


def plain_torch(context: Any, request: TrainRequest) -> dict[str, float]:
    """The loop that one would write by hand. A work, like `jobs.train.work:train`."""
    import time

    import numpy as np
    import torch
    from torch.nn import functional

    from jobs.data import Dataset
    from jobs.models.build import build

    torch.set_num_threads(context.num_threads)
    dataset = Dataset.open(request.dataset)
    encoding = dataset.encoding(request.recipe.data.normalize)
    arrays = {}
    for split in ("train", "validation"):
        ids = np.arange(dataset.num_samples(split))
        x = torch.from_numpy(dataset.encoded(split, ids, encoding))
        arrays[split] = (x, torch.tensor(dataset.targets(split)))
    spec = spec_for(1)
    module = build(spec.model, dataset.info.signature, seed=0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    x_train, y_train = arrays["train"]
    steps = request.recipe.total_steps(len(x_train))
    started = time.perf_counter()
    order = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        ids = order[torch.arange(step * 64, (step + 1) * 64) % len(order)]
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x_train[ids]), y_train[ids])
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        right = sum(
            (module(x).argmax(1) == y).sum().item()
            for x, y in zip(*(t.split(512) for t in arrays["validation"]), strict=True)
        )
    return {"seconds": time.perf_counter() - started, "steps": steps, "metric": right / len(arrays["validation"][1])}


def measure(steps: int, rounds: int) -> dict[str, Any]:
    spec = spec_for(steps)
    seconds: dict[str, list[float]] = {"plain torch": [], "thresher": []}
    with tempfile.TemporaryDirectory() as name, connect(None) as _:
        folder = Path(name)
        dataset = folder / data.fingerprint(spec.data, spec.train.loss)
        data.prepare(spec.data, spec.train.loss, dataset)
        recipe = Recipe(spec.train, spec.data, spec.metric)
        with Gang(1, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
            for turn in range(rounds + 1):  # the first warms up
                request = TrainRequest(spec.resolved()["model"], recipe, dataset, folder / f"run-{turn}")
                plain = run_work(gang, plain_torch, request)
                ours = run_work(gang, WorkRef("jobs.train.work:train"), request)
                if turn:
                    seconds["plain torch"].append(plain["seconds"])
                    seconds["thresher"].append(ours["productive_s"])
    ratios = [a / b for a, b in zip(seconds["plain torch"], seconds["thresher"], strict=True)]
    return {
        "data": spec.data.source.kind,
        "steps": steps,
        "rounds": rounds,
        "ms_per_step": {who: 1e3 * statistics.median(values) / steps for who, values in seconds.items()},
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.steps, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table(title=f"LeNet, batch 64, one worker, {result['data']}: median of {result['rounds']} rounds")
    for column in ("", "ms a step", "throughput against plain torch"):
        table.add_column(column, justify="left" if not column else "right")
    for who, value in result["ms_per_step"].items():
        ratio = 1.0 if who == "plain torch" else result["throughput_ratio"]
        table.add_row(who, f"{value:.2f}", f"{ratio:.2f}×")
    Console().print(table)


if __name__ == "__main__":
    main()
