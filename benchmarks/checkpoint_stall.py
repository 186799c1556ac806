"""How long a checkpoint holds training up: written beside the training against written in its way.

    python benchmarks/checkpoint_stall.py [--megaparams 20] [--rounds 5] [--json]

A multi-layer perceptron with AdamW: parameters and two states in fp32. Asynchronous is `Checkpoints.save` as the loop
calls it: training goes on once the tensors are copied. Synchronous is the same save, waited for.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from jobs.context import LocalContext
from jobs.layout import ParallelLayout, share_batch
from jobs.models.build import build
from jobs.records import Signature
from jobs.spec.model import MlpArgs, MlpModel
from jobs.spec.train import AdamW
from jobs.train.checkpoint import Checkpoints, Position
from jobs.train.engine import Batch, Engine
from jobs.train.mesh import Mesh, warm_up


def measure(megaparams: float, rounds: int) -> dict[str, Any]:
    warm_up(LocalContext())
    width = int((megaparams * 1e6 / 2) ** 0.5)
    model = MlpModel(name="mlp", args=MlpArgs(hidden=(width, width)))
    module = build(model, Signature(kind="vector", input_shape=(width,), outputs=10), seed=0)
    mesh = Mesh(ParallelLayout(), rank=0)
    share = share_batch(4, 1, None)
    engine = Engine(module, AdamW(name="adamw"), share, mesh, precision="fp32", gradient_clip=None)
    x, ids = torch.randn(4, width), np.arange(4)
    batch = Batch(0, 0, part=lambda index: (x, x, ids), ids=lambda index: ids)
    engine.train_batch(batch, lambda outputs, y, x: outputs.square().mean())  # so that the states exist
    seconds: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
    with tempfile.TemporaryDirectory(dir=".") as name:
        checkpoints = Checkpoints(Path(name), keep=1, mesh=mesh)
        for turn in range(rounds + 1):  # the first warms up
            for kind, values in seconds.items():
                started = time.perf_counter()
                checkpoints.save(engine, Position(turn, 4, 0, ""), {})
                if kind == "synchronous":
                    checkpoints.wait()
                elapsed = time.perf_counter() - started
                checkpoints.wait()
                if turn:
                    values.append(elapsed)
        checkpoints.close()
    engine.close()
    mesh.close()
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "params": sum(p.numel() for p in module.parameters()),
        "rounds": rounds,
        "seconds": medians,
        "ratio": medians["asynchronous"] / medians["synchronous"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megaparams", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.megaparams, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table(title=f"{result['params'] / 1e6:.1f} M parameters, AdamW: median of {result['rounds']} rounds")
    for column in ("checkpoint", "training held up", "share"):
        table.add_column(column, justify="right")
    for kind, value in result["seconds"].items():
        table.add_row(kind, f"{1e3 * value:.0f} ms", f"{value / result['seconds']['synchronous']:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
