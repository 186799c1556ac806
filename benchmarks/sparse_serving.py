"""Whether a linear layer with 95 % zeros is faster if it skips them: CSR against the dense ONNX file and its 8 bits.

    python benchmarks/sparse_serving.py [--sparsity 0.95] [--widths 256 1024 2048] [--seconds 2] [--json]

One square layer, random weights of which the smallest are zero, one thread. `csr` is torch's product of a matrix in
compressed rows with the transposed batch, `scipy` the same with SciPy's; `dense` and `int8` (dynamic) are ONNX Runtime,
which has no kernel for sparse weights. All take turns in one process; a ratio below 1 is faster than `dense`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from rich.console import Console
from rich.table import Table

from jobs.compress.quantize import quantize_onnx
from jobs.export.onnx import export_onnx
from jobs.measure.latency import ratio
from jobs.measure.session import open_session
from jobs.records import Signature

BATCHES = (1, 64)
TURN_S = 0.01


def layer(width: int, sparsity: float) -> torch.nn.Sequential:
    torch.manual_seed(0)
    linear = torch.nn.Linear(width, width)
    with torch.no_grad():
        least = linear.weight.abs().flatten().kthvalue(int(sparsity * width * width)).values
        linear.weight[linear.weight.abs() <= least] = 0.0
    return torch.nn.Sequential(linear)


def ways(model: torch.nn.Sequential, width: int, batch: int, folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, width)).astype(np.float32)
    files = {"dense": folder / "dense.onnx", "int8": folder / "int8.onnx"}
    if not files["int8"].exists():
        export_onnx(model, Signature(kind="vector", input_shape=(width,), outputs=width), files["dense"], {})
        quantize_onnx(
            files["dense"], files["int8"], "int8_dynamic", rng.standard_normal((64, width)).astype(np.float32)
        )
    sessions = {name: open_session(file) for name, file in files.items()}
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    compressed, scipys = weight.to_sparse_csr(), scipy.sparse.csr_matrix(weight.numpy())
    column, row = bias.unsqueeze(1), bias.numpy()
    return {
        "dense": lambda: sessions["dense"].run(None, {"input": x})[0],
        "int8": lambda: sessions["int8"].run(None, {"input": x})[0],
        "csr": lambda: (compressed @ torch.from_numpy(x).T.contiguous()).add_(column).T.contiguous().numpy(),
        "scipy": lambda: np.ascontiguousarray((scipys @ x.T).T) + row,
    }


def turns(runs: dict[str, Callable[[], np.ndarray]], seconds: float) -> dict[str, list[list[float]]]:
    """Milliseconds of each run, turn by turn; who begins rotates."""
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    order, ends = list(runs), time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < ends:
        for name in order:
            runs[name]()  # with warm caches
            turn, turn_ends = [], time.perf_counter() + TURN_S
            while not turn or time.perf_counter() < turn_ends:
                begin = time.perf_counter_ns()
                runs[name]()
                turn.append((time.perf_counter_ns() - begin) / 1e6)
            times[name].append(turn)
        order = order[1:] + order[:1]
    return times


def measure(width: int, sparsity: float, seconds: float) -> list[dict[str, Any]]:
    model, rows = layer(width, sparsity), []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for batch in BATCHES:
            runs = ways(model, width, batch, Path(folder))
            expected = runs["dense"]()
            differences = {name: float(np.abs(run() - expected).max()) for name, run in runs.items()}
            times = turns(runs, seconds)
            for name, own in times.items():
                against = ratio(own, times["dense"])
                p50 = float(np.median([each for turn in own for each in turn]))
                figures = {"p50_ms": p50, "n": sum(map(len, own)), "difference": differences[name]}
                to_dense = {"ratio": against.value, "ci95": against.ci95}
                rows.append({"width": width, "batch": batch, "way": name, **figures, **to_dense})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for width in arguments.widths for row in measure(width, arguments.sparsity, arguments.seconds)]
    if arguments.json:
        print(json.dumps({"sparsity": arguments.sparsity, "rows": rows}, indent=2))
        return
    table = Table(title=f"a layer with {100 * arguments.sparsity:g} % zeros, one thread")
    for column in ("width", "batch", "way", "p50 µs", "n", "time to dense's (95 %)", "largest difference"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        low, high = row["ci95"]
        figures = (f"{1000 * row['p50_ms']:.1f}", str(row["n"]), f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})")
        table.add_row(str(row["width"]), str(row["batch"]), row["way"], *figures, f"{row['difference']:.1g}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
