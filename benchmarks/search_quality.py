"""What the same time finds: Thresher's search against random search under plain Ray Tune, on Fashion-MNIST.

    python benchmarks/search_quality.py [--json] [--seconds 100] [--seeds 0 1 2 3 4] [--data data/fashion-mnist]

LeNet (6-16-120-84) on 6,000 training and 5,000 validation samples, drawn anew for each seed; 10 epochs a trial, two
trials at a time of one worker each. Searched are the optimizer, its rate, weight decay, dropout, label smoothing and
the batch size.

    thresher     `orchestrator.search` as it is by default: tpe, asha
    Tune         random search; a function over tensors in memory, which reports each epoch

Each contender has a process and a Ray of its own. Its clock starts before it imports anything and never stops: Ray's
start, preparing the data and starting the workers count. What counts is the best validation accuracy, after the
last epoch, of the trials that were complete when the time was over; beside it stands the best after any epoch of any
trial. The two take turns at going first. Exit code 1: the mean is not higher, or a seed is lower by more than 0.5
points.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

EPOCHS = 10
TRAIN, VALIDATION, TEST = 6000, 5000, 500
SPACE: dict[str, Any] = {
    "train.optimizer.name": {"choice": ["adamw", "sgd"]},
    "train.optimizer.lr": {"loguniform": [1e-5, 1e-1]},
    "train.optimizer.weight_decay": {"loguniform": [1e-6, 1e-1]},
    "train.label_smoothing": {"uniform": [0.0, 0.2]},
    "train.batch_size": {"choice": [32, 64, 128, 256]},
    "model.args.dropout": {"uniform": [0.0, 0.7]},
}
ALLOWED_BELOW = 0.5
"""Points of accuracy by which a single seed may be lower."""
NUM_TIMES = 10
"""Points of time in the table of the curves."""


class Clock:
    """What was reached when, since the contender's process began its work."""

    def __init__(self, seconds: float) -> None:
        self.started, self.seconds = time.monotonic(), seconds
        self.trials, self.epochs = list[tuple[float, float]](), list[tuple[float, float]]()
        self.begun, self.stopped = set[Any](), 0

    @property
    def left(self) -> float:
        return self.started + self.seconds - time.monotonic()

    def epoch(self, trial: Any, accuracy: float) -> None:
        if self.left > 0.0:
            self.begun.add(trial)
            self.epochs.append((self.seconds - self.left, accuracy))

    def completed(self, accuracy: float) -> None:
        if self.left > 0.0:
            self.trials.append((self.seconds - self.left, accuracy))

    def figures(self) -> dict[str, Any]:
        return {
            "best": max((accuracy for _, accuracy in self.trials), default=0.0),
            "best_epoch": max((accuracy for _, accuracy in self.epochs), default=0.0),
            "completed": len(self.trials),
            "stopped": self.stopped,
            "begun": len(self.begun),
            "num_epochs": len(self.epochs),
            "first_epoch_s": self.epochs[0][0] if self.epochs else None,
            "trials": self.trials,
            "epochs": self.epochs,
        }


def draw_samples(source: Path, folder: Path, seed: int) -> None:
    """Writes the samples of a seed: for Thresher one archive that it divides itself, for Tune what comes of that."""
    import numpy as np

    from jobs.data.sources.idx import Idx
    from jobs.data.split import divide, split_sizes
    from jobs.spec.data import IdxSource, Split

    contents = Idx(IdxSource(kind="idx", path=str(source))).read()
    assert contents.test is not None
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, part, count in (("train", contents.train, TRAIN + VALIDATION), ("test", contents.test, TEST)):
        ids = rng.permutation(len(part.target.values))[:count]
        found[f"x_{name}"] = np.asarray(part.x)[ids]
        found[f"y_{name}"] = np.asarray(part.target.values)[ids].astype(np.int64)
    np.savez(folder / "all.npz", **found)
    split = Split(validation=VALIDATION / (TRAIN + VALIDATION))
    sizes = split_sizes(TRAIN + VALIDATION, TEST, split)
    ids = divide(found["y_train"], TRAIN + VALIDATION, sizes, True, split.seed)
    parts = {name: (found["x_train"][ids[name]], found["y_train"][ids[name]]) for name in ("train", "validation")}
    np.savez(
        folder / "divided.npz", **{f"{a}_{n}": v for n, xy in parts.items() for a, v in zip("xy", xy, strict=True)}
    )


def by_thresher(folder: Path, seed: int, clock: Clock) -> None:
    from cluster.connect import connect
    from orchestrator import JobSpec, StopSearch, TrialEpoch, search

    document = {
        "name": "quality",
        "data": {
            "source": {"kind": "npz", "path": str(folder / "all.npz")},
            "split": {"validation": VALIDATION / (TRAIN + VALIDATION)},
        },
        "model": {"name": "lenet", "args": {"conv_widths": [6, 16], "linear_widths": [120, 84]}},
        "train": {"epochs": EPOCHS, "seed": seed},
        "search": {"trials": 1000, "concurrency": 2, "seed": seed, "space": SPACE},
    }

    def on_epoch(epoch: TrialEpoch) -> StopSearch | None:
        clock.epoch(epoch.trial, epoch.metric)
        return StopSearch("the time is over") if clock.left <= 0.0 else None

    def on_trial(trial: Any) -> None:
        if trial.state == "completed":
            clock.completed(trial.values["metric"])
        else:
            clock.stopped += clock.left > 0.0

    with connect(None, num_cpus=2):
        search(JobSpec.parse(document), runs=folder / "runs", on_trial=on_trial, on_epoch=on_epoch)


def train_plainly(config: dict[str, Any], data: dict[str, Any]) -> None:
    """A function for Tune."""
    import torch
    from ray import tune
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    layers: list[nn.Module] = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    for inputs, outputs in ((784, 120), (120, 84)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(config["dropout"])]
    model = nn.Sequential(*layers, nn.Linear(84, 10))
    optimizer: torch.optim.Optimizer
    if config["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config["lr"], momentum=0.9, weight_decay=config["weight_decay"]
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    x, y = data["train"]
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(x)).split(config["batch_size"]):
            optimizer.zero_grad()
            smoothing = config["label_smoothing"]
            functional.cross_entropy(model(x[batch]), y[batch], label_smoothing=smoothing).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            x_held, y_held = data["validation"]
            predicted = torch.cat([model(part).argmax(1) for part in x_held.split(500)])
        accuracy = float((predicted == y_held).float().mean())
        tune.report({"accuracy": accuracy, "epoch": epoch + 1})


def by_tune(folder: Path, seed: int, clock: Clock) -> None:
    import numpy as np
    import ray
    import torch
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    stored = np.load(folder / "divided.npz")
    mean, deviation = (float(f(stored["x_train"])) / 255 for f in (np.mean, np.std))
    data = {
        name: (
            (torch.tensor(stored[f"x_{name}"]).reshape(-1, 1, 28, 28).float() / 255 - mean) / deviation,
            torch.tensor(stored[f"y_{name}"]),
        )
        for name in ("train", "validation")
    }

    class Ticking(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            clock.epoch(trial.trial_id, result["accuracy"])
            if result["epoch"] == EPOCHS:
                clock.completed(result["accuracy"])

    space = {
        "optimizer": tune.choice(SPACE["train.optimizer.name"]["choice"]),
        "lr": tune.loguniform(*SPACE["train.optimizer.lr"]["loguniform"]),
        "weight_decay": tune.loguniform(*SPACE["train.optimizer.weight_decay"]["loguniform"]),
        "label_smoothing": tune.uniform(*SPACE["train.label_smoothing"]["uniform"]),
        "batch_size": tune.choice(SPACE["train.batch_size"]["choice"]),
        "dropout": tune.uniform(*SPACE["model.args.dropout"]["uniform"]),
        "seed": seed,
    }
    tune.Tuner(
        tune.with_resources(tune.with_parameters(train_plainly, data=data), {"CPU": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=-1,
            max_concurrent_trials=2,
            time_budget_s=max(1.0, clock.left),
            search_alg=BasicVariantGenerator(max_concurrent=2, random_state=seed),
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=[Ticking()]),
    ).fit()
    ray.shutdown()


CONTENDERS = {"thresher": by_thresher, "Tune": by_tune}


def alone(name: str, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """A contender in a process of its own."""
    command = [sys.executable, __file__, "--only", name, str(folder), "--seeds", str(seed), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, seed {seed}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(source: Path, seeds: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """For each seed the figures of both."""
    rows = []
    for place, seed in enumerate(seeds):
        with tempfile.TemporaryDirectory(prefix="quality-") as temporary:
            draw_samples(source, Path(temporary), seed)
            names = list(CONTENDERS) if place % 2 == 0 else list(reversed(CONTENDERS))
            rows.append({"seed": seed, **{name: alone(name, Path(temporary), seed, seconds) for name in names}})
        print(f"seed {seed}: " + ", ".join(f"{n} {rows[-1][n]['best']:.4f}" for n in CONTENDERS), file=sys.stderr)
    return rows


def reached(points: Sequence[Sequence[float]], at: float) -> float | None:
    """The best until a time; None before the first."""
    return max((accuracy for seconds, accuracy in points if seconds <= at), default=None)


def curve(rows: Sequence[dict[str, Any]], name: str, times: Sequence[float]) -> list[float | None]:
    """The best so far, mean over the seeds; None where one of them has nothing yet."""
    found: list[float | None] = []
    for at in times:
        values = [reached(row[name]["trials"], at) for row in rows]
        known = [value for value in values if value is not None]
        found.append(statistics.mean(known) if len(known) == len(values) else None)
    return found


def summary(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    differences = [100.0 * (row["thresher"]["best"] - row["Tune"]["best"]) for row in rows]
    times = [seconds * (index + 1) / NUM_TIMES for index in range(NUM_TIMES)]
    return {
        "seconds": seconds,
        "seeds": rows,
        "differences": differences,
        "mean_difference": statistics.mean(differences),
        "curves": {"seconds": times, **{name: curve(rows, name, times) for name in CONTENDERS}},
        "met": statistics.mean(differences) > 0.0 and min(differences) >= -ALLOWED_BELOW,
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"best validation accuracy after {found['seconds']:.0f} s, all told ({VALIDATION:,} samples)")
    columns = ("seed", "thresher", "Tune, random", "difference", "any epoch", "Tune", "trials: done, stopped", "Tune")
    for column in columns:
        table.add_column(column, justify="right")
    rows = found["seeds"]
    for row, difference in zip(rows, found["differences"], strict=True):
        ours, theirs = row["thresher"], row["Tune"]
        table.add_row(
            str(row["seed"]),
            f"{100 * ours['best']:.2f} %",
            f"{100 * theirs['best']:.2f} %",
            f"{difference:+.2f}",
            f"{100 * ours['best_epoch']:.2f} %",
            f"{100 * theirs['best_epoch']:.2f} %",
            f"{ours['completed']}, {ours['stopped']}",
            str(theirs["completed"]),
        )
    means = [statistics.mean(row[name][key] for row in rows) for key in ("best", "best_epoch") for name in CONTENDERS]
    shown = [f"{100 * mean:.2f} %" for mean in means]
    table.add_section()
    table.add_row("mean", *shown[:2], f"{found['mean_difference']:+.2f}", *shown[2:], "", "")
    curves = Table(title="best so far, mean over the seeds")
    for column in ("after", *CONTENDERS):
        curves.add_column(column, justify="right")
    for at, *values in zip(*found["curves"].values(), strict=True):
        curves.add_row(f"{at:.0f} s", *("-" if value is None else f"{100 * value:.2f} %" for value in values))
    Console().print(table, curves)
    wanted = f"wanted: a higher mean, and no seed lower by more than {ALLOWED_BELOW} points"
    Console().print(f"{wanted}: {'met' if found['met'] else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0, help="of each contender, for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"), help="`thresher data get` fetches it")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every point of the curves")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        clock = Clock(options.seconds)
        CONTENDERS[options.only[0]](Path(options.only[1]), options.seeds[0], clock)
        print(json.dumps(clock.figures()))
        return 0
    found = summary(compare(options.data, options.seeds, options.seconds), options.seconds)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
