"""How small a pack gets, and at what accuracy: against zstd and gzip of the same model's fp32 file.

    python benchmarks/pack.py [examples/lenet_pack.yaml] [--seeds 0 1 2] [--set K=V] [--runs DIR] [--json]

For each seed the dense model is trained as the spec says, packed, and both are measured: the pack through the file
that it restores. A ratio is the dense model's fp32 parameters (4 bytes each) to the bytes of a file.
"""

import argparse
import gzip
import hashlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import zstandard
from rich.console import Console
from rich.table import Table

from jobs.compress.pack import unpack
from jobs.spec import JobSpec
from orchestrator import driver
from orchestrator.report import read_report


def interval(figure: dict[str, Any]) -> dict[str, Any]:
    return {"value": figure["value"], "ci95": figure["ci95"], "n": figure["n"]}


def measure(spec: JobSpec, runs: str) -> dict[str, Any]:
    seen: dict[str, str] = {}

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            seen["folder"] = event["run_dir"]
        if event["event"] in ("stage", "epoch"):
            sys.stderr.write(f"  {event.get('stage') or event.get('label')} {event.get('metric') or ''}\n")

    driver.run(spec, runs=runs, listeners=(note,))
    folder = Path(seen["folder"])
    report = read_report(folder)
    by_stage = {artifact.stage: artifact.to_json() for artifact in report.artifacts}
    dense, packed = by_stage["dense"], by_stage["pack"]
    onnx = (folder / "artifacts" / dense["name"] / "model.onnx").read_bytes()
    pack = folder / "artifacts" / packed["name"] / "model.thpack"
    with tempfile.TemporaryDirectory() as restored:
        digests = {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in unpack(pack, Path(restored)).items()
        }
    sizes = {
        "fp32 parameters": 4 * dense["measurement"]["params"],
        "gzip -9 of the fp32 file": len(gzip.compress(onnx, 9)),
        "zstd -19 of the fp32 file": len(zstandard.ZstdCompressor(level=19).compress(onnx)),
        "pack": pack.stat().st_size,
    }
    return {
        "seed": spec.train.seed,
        "bytes": sizes,
        "ratio": sizes["fp32 parameters"] / sizes["pack"],
        "selected": report.selected,
        "restored_sha256": digests,
        "metric_delta": packed["measurement"]["metric_delta"],
        "validation": {
            name: interval(each["measurement"]["metric"]) for name, each in (("dense", dense), ("pack", packed))
        },
        "test": {
            name: interval(each["test_metric"])
            for name, each in (("dense", dense), ("pack", packed))
            if each["test_metric"]
        },
    }


def percent(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "not measured: the pack was not selected"
    low, high = figure["ci95"]
    return f"{100 * figure['value']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def show(spec: JobSpec, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{spec.name}: accuracy in %, with 95 % intervals")
    for column in ("seed", "pack", "ratio", "dense, validation", "pack, validation", "dense, test", "pack, test"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = [percent(row[split].get(name)) for split in ("validation", "test") for name in ("dense", "pack")]
        table.add_row(str(row["seed"]), f"{row['bytes']['pack']} B", f"{row['ratio']:.1f}×", *figures)
    console = Console(width=160)
    console.print(table)
    others = Table(title="mean over seeds")
    others.add_column("file")
    for column in ("bytes", "ratio"):
        others.add_column(column, justify="right")
    for name in rows[0]["bytes"]:
        size = statistics.mean(row["bytes"][name] for row in rows)
        ratio = statistics.mean(row["bytes"]["fp32 parameters"] / row["bytes"][name] for row in rows)
        others.add_row(name, f"{size:.0f}", f"{ratio:.2f}×")
    console.print(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", default="examples/lenet_pack.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        # A budget without limits, so that the pack is tested whatever came of it.
        overrides = [*arguments.overrides, f"train.seed={seed}", "compress.budget={max_metric_drop: null}"]
        spec = JobSpec.load(arguments.spec, overrides)
        rows.append(measure(spec, arguments.runs))
    means = {
        "ratio": statistics.mean(row["ratio"] for row in rows),
        **{
            f"{name}_{split}": statistics.mean(row[split][name]["value"] for row in rows)
            for split in ("validation", "test")
            for name in ("dense", "pack")
            if all(name in row[split] for row in rows)
        },
    }
    if arguments.json:
        print(json.dumps({"spec": spec.name, "seeds": rows, "mean": means}, indent=2))
    else:
        show(spec, rows)


if __name__ == "__main__":
    main()
