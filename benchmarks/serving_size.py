"""How much smaller what is served gets, on every model family: one `thresher run` each, the file that it selects.

    python benchmarks/serving_size.py [lenet resnet …] [--set K=V] [--runs DIR] [--json]

Families, specs and what must hold stand in serving_size.json. Bytes are those of ONNX files as they lie on disk. The
metric and its paired difference to the dense model are of the validation split, on which the choice was made. The
selected file is then given to a fresh process that has ONNX Runtime and NumPy alone: it predicts the whole split, and
the metric that it computes must be the one that was reported. Exit code 1 if something does not hold.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.data import Dataset
from jobs.measure.session import predict
from jobs.spec import JobSpec
from orchestrator import driver

DATA = json.loads(Path(__file__).with_suffix(".json").read_text())
THRESHOLDS = DATA["thresholds"]

SERVING = """
import json, sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
file, folder, metric = sys.argv[1:]
x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
outputs = np.concatenate([session.run(None, {name: x[i : i + 256]})[0] for i in range(0, len(x), 256)])
np.save(folder + "/outputs.npy", outputs)
if metric == "accuracy":
    value = float((outputs.argmax(axis=1) == y).mean())
else:
    value = float(np.sqrt(np.mean((outputs[:, 0].astype(np.float64) - y) ** 2)))
foreign = sorted({"torch", "onnx", "jobs", "ray", "deepspeed"} & set(sys.modules))
print(json.dumps({"metric": value, "foreign": foreign}))
"""


def serve(file: Path, dataset: Dataset, normalize: str, metric: str) -> dict[str, Any]:
    """The file in a process of ONNX Runtime and NumPy: its metric on validation, and its outputs against ours."""
    ids = np.arange(dataset.num_samples("validation"))
    x = dataset.encoded("validation", ids, dataset.encoding(normalize))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        np.save(f"{folder}/y.npy", dataset.targets("validation"))
        command = [sys.executable, "-I", "-c", SERVING, str(file.resolve()), folder, metric]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        outputs = np.load(f"{folder}/outputs.npy", allow_pickle=False)
    difference = float(np.abs(outputs - predict(file, x)).max())
    return {**json.loads(done.stdout), "difference": difference}


def measure(family: str, overrides: list[str], runs: str) -> dict[str, Any]:
    spec = JobSpec.load(DATA["specs"].format(family=family), overrides)
    report = driver.run(spec, runs=runs)
    folder = Path(runs) / report.run_id
    artifacts = {artifact.name: artifact for artifact in report.artifacts}
    dense = next(artifact for artifact in report.artifacts if artifact.stage == "dense")
    chosen = artifacts[report.selected]
    ours, delta = chosen.measurement, chosen.measurement.metric_delta
    parent = chosen if chosen.stage != "quantize" else artifacts[str(chosen.parent)]
    dataset = Dataset.open(Path(runs) / "datasets" / report.dataset["fingerprint"])
    served = serve(folder / "artifacts" / chosen.name / "model.onnx", dataset, spec.data.normalize, ours.metric.name)
    row = {
        "family": family,
        "dense_bytes": dense.measurement.bytes,
        "selected": chosen.name,
        "bytes": ours.bytes,
        "ratio": dense.measurement.bytes / ours.bytes,
        "metric": ours.metric.name,
        "dense_metric": dense.measurement.metric.value,
        "selected_metric": ours.metric.value,
        "delta": 0.0 if delta is None else delta.value,
        "delta_ci95": (0.0, 0.0) if delta is None else delta.ci95,
        "n": ours.metric.n,
        "float_parity": parent.measurement.parity_max_abs_diff,
        "parity": ours.parity_max_abs_diff,
        "reload_difference": served["difference"],
        "reload_metric": served["metric"],
        "reload_modules": served["foreign"],
        "test": {
            name: None if artifact.test_metric is None else artifact.test_metric.to_json()
            for name, artifact in (("dense", dense), ("selected", chosen))
        },
        "latency": {key: _pace(chosen, dense.name, key) for key in ("batch_1", "batch_64")},
        "seconds": report.goodput.wall_s,
        "verdict": chosen.verdict,
    }
    return {**row, "misses": misses(row)}


def _pace(chosen: Any, dense: str, key: str) -> dict[str, Any] | None:
    latency = chosen.measurement.latency_ms.get(key)
    ratio = None if latency is None else latency.against.get(dense)
    return None if ratio is None else {"ratio": ratio.value, "ci95": ratio.ci95, "p50_ms": latency.p50, "n": latency.n}


def misses(row: dict[str, Any]) -> list[str]:
    """What does not hold, in words."""
    drops = THRESHOLDS["drop"]
    allowed = drops["rmse_share"] * row["dense_metric"] if row["metric"] == "rmse" else drops[row["metric"]]
    checks = {
        f"{row['ratio']:.2f} times smaller": row["ratio"] >= THRESHOLDS["ratio"]["at_least"],
        f"{row['metric']} lower by {-row['delta']:.4f}": -row["delta"] <= allowed + 1e-9,
        "parity of the float file": row["float_parity"] <= THRESHOLDS["float_parity"]["at_most"],
        "other outputs elsewhere": row["reload_difference"] <= THRESHOLDS["reload_difference"]["at_most"],
        "another metric elsewhere": abs(row["reload_metric"] - row["selected_metric"])
        <= THRESHOLDS["reload_metric_difference"]["at_most"] * max(1.0, row["selected_metric"]),
        f"{row['reload_modules']} were loaded": not row["reload_modules"],
    }
    return [words for words, holds in checks.items() if not holds]


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="what is served, against the dense ONNX file")
    columns = ("family", "dense", "selected", "bytes", "ratio", "metric", "difference (95 %)", "n", "float parity")
    for column in (*columns, "elsewhere", "b1", "b64", "seconds", "holds"):
        table.add_column(column, justify="left" if column in ("family", "selected", "holds") else "right")
    for row in rows:
        scale, digits = (100, 2) if row["metric"] == "accuracy" else (1, 4)
        low, high = (scale * bound for bound in row["delta_ci95"])
        paces = [row["latency"][key] for key in ("batch_1", "batch_64")]
        table.add_row(
            row["family"],
            str(row["dense_bytes"]),
            row["selected"],
            str(row["bytes"]),
            f"{row['ratio']:.2f}×",
            f"{scale * row['selected_metric']:.{digits}f}",
            f"{scale * row['delta']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})",
            str(row["n"]),
            f"{row['float_parity']:.1g}",
            f"{row['reload_difference']:.1g}",
            *("" if pace is None else f"{pace['ratio']:.2f}" for pace in paces),
            f"{row['seconds']:.0f}",
            "; ".join(row["misses"]) or "yes",
        )
    Console(width=190).print(table)
    Console().print("accuracy in %; a positive difference is better than dense; b1, b64: latency, dense = 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(DATA['families'])}; default: all")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(DATA["families"]):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    rows = []
    for family in arguments.families or DATA["families"]:
        sys.stderr.write(f"{family}\n")
        rows.append(measure(family, arguments.overrides, arguments.runs))
    if arguments.json:
        print(json.dumps({"thresholds": THRESHOLDS, "families": rows}, indent=2))
    else:
        show(rows)
    sys.exit(1 if any(row["misses"] for row in rows) else 0)


if __name__ == "__main__":
    main()
