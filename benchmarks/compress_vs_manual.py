"""`thresher run` against the usual manual way to a small model, both from the same trained weights.

    python benchmarks/compress_vs_manual.py [SPEC …] [--seeds 0 1 2] [--set K=V] [--runs DIR] [--json]

By hand: Torch-Pruning takes half of every layer at once (MagnitudeImportance, MagnitudePruner), plain torch fine-tunes
with AdamW under a cosine from 1e-3, torch.onnx exports, and onnxruntime's `quantize_static` quantizes with its defaults
and the same calibration samples. It gets as many epochs as the spec's recovery has, and then more for as long as the
recovery trained, whichever is longer. That is processor time, which on a quiet machine is the time itself, since both
have one thread, and on a busy one does not depend on who was made to wait. It is that of the steps and of validation
after each epoch, in which by hand goes on training; neither counts the start of its processes. Thresher's file is the
one that the run selects, on validation.

Of the specs ratio and budget are set to those of the way by hand, unless --set says otherwise: half of every layer
goes, and up to a point may be lost.

Accuracies of the table are of test, which neither has seen. Latencies of all three files are taken in turns, in one
process, with one thread. Ours is `worse`, `equal` or `better` by the paired 95 % interval of the accuracy, by bytes,
and by the interval of the latencies' ratio (within 2 % they are equal). Exit code 1 if it is worse in anything.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from jobs.data import Dataset
from jobs.measure.latency import latencies
from jobs.measure.metrics import interval, paired_delta
from jobs.measure.session import predict
from jobs.models.build import load_model
from jobs.records import Ratio
from jobs.spec import JobSpec
from orchestrator import driver
from orchestrator.verdict import AS_FAST

RATIO, LR, BATCH = 0.5, 1e-3, 128
SPECS = ("examples/small/lenet.yaml", "examples/mlp_fashion.yaml")
AS_BY_HAND = ("compress.prune.ratio=0.5", "compress.budget.max_metric_drop=0.01")
LATENCY_S = 8.0
"""A file: half for batch 1, half for batch 64."""


def plain(ours: nn.Module, spec: JobSpec) -> nn.Sequential:
    """The same network with the same weights, as one would have written it in torch."""
    args = spec.model.args
    layers: list[nn.Module] = []
    for layer in (module for module in ours.modules() if isinstance(module, nn.Conv2d | nn.Linear)):
        if isinstance(layer, nn.Conv2d):
            size, pads = layer.kernel_size, tuple(int(side) for side in layer.padding)
            layers += [nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=pads), nn.ReLU(), nn.MaxPool2d(2)]
        else:
            flat = [] if any(isinstance(module, nn.Flatten) for module in layers) else [nn.Flatten()]
            layers += [*flat, nn.Linear(layer.in_features, layer.out_features), nn.ReLU()]
            layers += [nn.Dropout(args.dropout)] if args.dropout else []
    while not isinstance(layers[-1], nn.Linear):
        layers.pop()  # the classifier's own outputs are the logits
    model = nn.Sequential(*layers)
    model.load_state_dict(dict(zip(model.state_dict(), ours.state_dict().values(), strict=True)))
    return model


def pruned(model: nn.Module, example: torch.Tensor) -> nn.Module:
    import torch_pruning

    *_, classifier = (module for module in model.modules() if isinstance(module, nn.Linear))
    importance = torch_pruning.importance.MagnitudeImportance()
    torch_pruning.pruner.MagnitudePruner(
        model, example, importance=importance, pruning_ratio=RATIO, ignored_layers=[classifier]
    ).step()
    return model


def fine_tune(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, seconds: float, seed: int) -> int:
    """As many epochs as asked for, and more while time is left; how many there were."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    started = time.process_time()
    spent = [_epoch(model, optimizer, x, y)]  # at the full rate; how long one takes decides how many there are
    total = max(epochs, 1 + round((seconds - spent[0]) / spent[0]))
    for epoch in range(1, total):
        optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * epoch / total)) / 2
        spent.append(_epoch(model, optimizer, x, y))
    sys.stderr.write(f"  by hand: {total} epochs in {time.process_time() - started:.0f} of {seconds:.0f} s\n")
    model.to(memory_format=torch.contiguous_format).eval()
    return total


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    started = time.process_time()
    for ids in torch.randperm(len(x)).split(BATCH):
        batch = x[ids].contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x[ids]
        loss = nn.functional.cross_entropy(model(batch), y[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - started


def quantized(model: nn.Module, calibration: np.ndarray, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.split(calibration, len(calibration) // 32))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    source, target = folder / "manual.onnx", folder / "manual_int8.onnx"
    example = (torch.from_numpy(calibration[:2]),)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model,
        example,
        source,
        input_names=["input"],
        dynamo=True,
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    quantize_static(source, target, Reader())
    return target


class Recovering:
    """A listener that adds up the processor time of the workers while they recover a pruned model."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, float]] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        label = event.get("label", "")
        if label.startswith("recover") and event["event"] in ("step", "epoch"):
            spent = _workers_seconds()
            step, before = self.first.setdefault(label, (event["step"], spent))
            if event["step"] > step:  # the steps before the first report count as those after it
                self.seconds[label] = (spent - before) * event["step"] / (event["step"] - step)


def _workers_seconds() -> float:
    """Processor time so far of the gang that this process has started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::Member"):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def ours(spec: JobSpec, runs: str) -> dict[str, Any]:
    recovering = Recovering()
    report = driver.run(spec, runs=runs, listeners=(recovering,))
    folder = Path(runs) / report.run_id
    if not recovering.seconds:
        raise SystemExit(f"the pruning was there already, and took no time now: another --runs than {runs}")
    return {
        "dense": folder / "artifacts" / "dense",
        "file": folder / "artifacts" / report.selected / "model.onnx",
        "selected": report.selected,
        "dataset": Dataset.open(Path(runs) / "datasets" / report.dataset["fingerprint"]),
        "seconds": sum(recovering.seconds.values()),
    }


def compare(spec: JobSpec, runs: str) -> dict[str, Any]:
    assert spec.compress.prune is not None
    found = ours(spec, runs)
    dataset, encoding = found["dataset"], found["dataset"].encoding(spec.data.normalize)
    encoded: Callable[[str], np.ndarray] = lambda split: dataset.encoded(  # noqa: E731
        split, np.arange(dataset.num_samples(split)), encoding
    )
    train, calibration = encoded("train"), dataset.encoded("train", dataset.calibration_ids, encoding)
    dense = load_model(found["dense"]).eval()
    model = plain(dense, spec).eval()
    with torch.no_grad():
        assert torch.allclose(model(torch.from_numpy(train[:64])), dense(torch.from_numpy(train[:64])), atol=1e-5)
    model = pruned(model, torch.from_numpy(train[:1]))
    targets = torch.from_numpy(dataset.targets("train").copy())
    prune = spec.compress.prune
    epochs = prune.steps * prune.recover.epochs
    done = fine_tune(model, torch.from_numpy(train), targets, epochs, found["seconds"], spec.train.seed)
    folder = Path(runs) / "by-hand" / found["dense"].parents[1].name
    folder.mkdir(parents=True)
    files = {
        "dense": found["dense"] / "model.onnx",
        "by hand": quantized(model, calibration, folder),
        "thresher": found["file"],
    }
    outputs, accuracy = {}, {}
    for split in ("validation", "test"):
        x, y = encoded(split), dataset.targets(split)
        outputs[split] = {name: predict(file, x) for name, file in files.items()}
        accuracy[split] = {
            name: interval("accuracy", values, y, split=split).to_json() for name, values in outputs[split].items()
        }
    timed = latencies(
        files,
        encoded("validation")[:64],
        seconds_per_file=LATENCY_S,
        against={"thresher": ("by hand", "dense"), "by hand": ("dense",)},
    )
    delta = paired_delta("accuracy", outputs["test"]["thresher"], outputs["test"]["by hand"], dataset.targets("test"))
    sizes = {name: file.stat().st_size for name, file in files.items()}
    ratios = {key: latency.against["by hand"] for key, latency in timed["thresher"].items()}
    return {
        "spec": spec.name,
        "seed": spec.train.seed,
        "selected": found["selected"],
        "epochs": {"thresher": epochs, "by hand": done},
        "seconds": found["seconds"],
        "accuracy": accuracy,
        "difference": delta.to_json(),
        "bytes": sizes,
        "latency_ms": {
            name: {key: {"p50": value.p50, "p90": value.p90, "n": value.n} for key, value in latency.items()}
            for name, latency in timed.items()
        },
        "latency_ratio": {key: ratio.to_json() for key, ratio in ratios.items()},
        "judgement": {
            "accuracy": judged(delta.ci95, 0.0),
            "bytes": judged((sizes["by hand"] / sizes["thresher"],) * 2, 1.0),
            **{key: pace(ratio) for key, ratio in ratios.items()},
        },
    }


def judged(bounds: tuple[float, float], even: float) -> str:
    """Whether ours is better, from the interval of a figure that is larger the better it is."""
    return "better" if bounds[0] > even else "worse" if bounds[1] < even else "equal"


def pace(ratio: Ratio) -> str:
    """The same of a latency's ratio, which is smaller the better it is."""
    if abs(ratio.value - 1.0) < AS_FAST:
        return "equal"
    return judged((1.0 / ratio.ci95[1], 1.0 / ratio.ci95[0]), 1.0)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="by hand and by `thresher run`")
    for column in ("spec", "seed", "file", "validation", "test (95 %)", "bytes", "b1 µs", "b64 µs", "against by hand"):
        table.add_column(column, justify="left" if column in ("spec", "file", "against by hand") else "right")
    for row in rows:
        for name in row["bytes"]:
            test, latency = row["accuracy"]["test"][name], row["latency_ms"][name]
            low, high = test["ci95"]
            table.add_row(
                *((row["spec"], str(row["seed"])) if name == "dense" else ("", "")),
                f"{name}: {row['selected']}" if name == "thresher" else name,
                f"{100 * row['accuracy']['validation'][name]['value']:.2f}",
                f"{100 * test['value']:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                str(row["bytes"][name]),
                *(f"{1000 * latency[key]['p50']:.1f}" for key in ("batch_1", "batch_64")),
                ", ".join(f"{key} {word}" for key, word in row["judgement"].items()) if name == "thresher" else "",
            )
    Console(width=190).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.specs:
        for seed in arguments.seeds:
            sys.stderr.write(f"{path}, seed {seed}\n")
            overrides = [*AS_BY_HAND, *arguments.overrides, f"train.seed={seed}"]
            rows.append(compare(JobSpec.load(path, overrides), arguments.runs))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)
    sys.exit(1 if any("worse" in row["judgement"].values() for row in rows) else 0)


if __name__ == "__main__":
    main()
