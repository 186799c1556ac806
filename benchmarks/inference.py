"""Predicting new samples: `predict_with` over workers against a plain loop over one ONNX Runtime session.

    python benchmarks/inference.py [--samples 4096] [--rounds 3] [--json]

The model is a transformer with random weights that classifies texts of 64 tokens, the samples lie in a .npz file. The
plain loop is what one would write: load, encode, a session, batches of 256; once with a single thread, which is what a
worker has, and once with as many as there are processors, which is ONNX Runtime's default. Thresher's rows give
the same samples to one process and to gangs of two workers: the samples shared out, or the model divided by layers or
by blocks, where torch computes. Gangs are warm; what it takes to start one is given beside. Rounds take turns, and
medians are compared. All rows are held to the plain loop's outputs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cluster.connect import connect
from cluster.gang import Gang
from jobs.context import WorkRef
from jobs.export.card import file_records, write_card
from jobs.export.onnx import export_onnx
from jobs.models.build import build, save_model
from jobs.records import Signature
from jobs.spec.load import model_section
from orchestrator.prediction import Spread, predict_with

STEPS, VOCABULARY, CLASSES, BATCH = 64, 1000, 4, 256
MODEL = {"name": "transformer", "args": {"layers": 4, "width": 128, "heads": 4}}
SIGNATURE = Signature(kind="tokens", input_shape=(STEPS,), outputs=CLASSES, num_codes=(VOCABULARY,))
SPREADS = {
    "1 process": Spread(),
    "2 workers, samples shared out": Spread(workers=2),
    "2 workers, --tensor 2": Spread(tensor=2),
    "2 workers, --pipeline 2": Spread(pipeline=2),
}
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact, data = prepare(Path(folder), arguments.samples)
        result = compare(artifact, data, arguments.rounds)
    result = {"samples": arguments.samples, "rounds": arguments.rounds, "processors": os.cpu_count(), **result}
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    sys.exit(0 if result["largest_difference"] <= TOLERANCE else 1)


def prepare(folder: Path, samples: int) -> tuple[Path, Path]:
    """An artifact with a model of random weights, and a file of samples for it."""
    module = build(model_section(MODEL), SIGNATURE, seed=0).eval()
    artifact = folder / "artifact"
    save_model(module, {"model": MODEL, "signature": SIGNATURE.to_json()}, artifact)
    export_onnx(module, SIGNATURE, artifact / "model.onnx", {})
    files = file_records(artifact, ["model.onnx", "model.safetensors", "model.json"])
    encoding = {"kind": "tokens", "steps": STEPS, "vocabulary": VOCABULARY}
    classes = [f"class {number}" for number in range(CLASSES)]
    card = {"files": [f.to_json() for f in files], "encoding": encoding, "task": "classification", "classes": classes}
    write_card(artifact, {"name": "dense", "parent": None, "stage": "dense", **card})
    rng = np.random.default_rng(0)
    lengths = rng.integers(STEPS // 2, STEPS + 1, samples)
    np.savez(folder / "new.npz", x=rng.integers(0, VOCABULARY - 1, (samples, STEPS)), lengths=lengths)
    return artifact, folder / "new.npz"


def plain_loop(artifact: Path, data: Path, threads: int) -> np.ndarray:
    """What one would write without Thresher."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(artifact / "model.onnx", options, providers=["CPUExecutionProvider"])
    with np.load(data) as archive:
        x, lengths = archive["x"], archive["lengths"]
    x = np.where(np.arange(STEPS) < lengths[:, None], x + 1, 0)
    batches = (x[first : first + BATCH] for first in range(0, len(x), BATCH))
    return np.concatenate([session.run(None, {"input": batch})[0] for batch in batches])


def compare(artifact: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Samples a second of each way, over interleaved rounds; seconds to start a gang; the largest difference."""
    with connect(None), ExitStack() as stack:
        started = time.perf_counter()
        with Gang(2):
            start_s = {"samples shared out": time.perf_counter() - started}
        started = time.perf_counter()
        warm = stack.enter_context(Gang(2, warm_up=WorkRef("jobs.train.mesh:warm_up")))
        start_s["model divided"] = time.perf_counter() - started

        ways: dict[str, Callable[[], np.ndarray]] = {
            "plain loop, 1 thread": lambda: plain_loop(artifact, data, 1),
            "plain loop, default threads": lambda: plain_loop(artifact, data, 0),
        }
        for name, spread in SPREADS.items():
            group = None if spread.layout.size == 1 else warm
            ways[name] = lambda spread=spread, group=group: predict_with(artifact, data, spread, group=group).outputs
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        expected, difference = plain_loop(artifact, data, 1), 0.0
        for number in range(rounds + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                outputs = way()
                if number > 0:  # the first one imports and maps pages
                    seconds[name].append(time.perf_counter() - started)
                difference = max(difference, float(np.abs(outputs - expected).max()))
    rates = {name: len(expected) / statistics.median(values) for name, values in seconds.items()}
    base = rates["plain loop, 1 thread"]
    return {
        "samples_per_s": {name: round(rate) for name, rate in rates.items()},
        "ratio": {name: round(rate / base, 2) for name, rate in rates.items()},
        "start_s": {name: round(value, 1) for name, value in start_s.items()},
        "largest_difference": difference,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['samples']} texts of {STEPS} tokens, {result['processors']} processors, {result['rounds']} rounds"
    ]
    lines.append(f"{'':34}{'samples/s':>10}{'ratio':>8}")
    for name, rate in result["samples_per_s"].items():
        lines.append(f"{name:34}{rate:>10,}{result['ratio'][name]:>7.2f}x")
    starts = ", ".join(f"{name} {seconds:g} s" for name, seconds in result["start_s"].items())
    lines.append(f"to start a gang of two: {starts}; largest difference {result['largest_difference']:.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
