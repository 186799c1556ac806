"""Trials a minute, two at a time: Thresher's search against Ray Tune, the same trials.

    python benchmarks/sweep_vs_ray.py [--json] [--kinds gang single] [--trials 40] [--train-trials 6] [--rounds 3]

Two kinds of trials, both of LeNet on scikit-learn's digits, learning rates drawn at random:

    gang     two workers, DeepSpeed ZeRO 2, 20 steps. Ray's way: Tune drives a TorchTrainer for each trial
    single   one worker, 300 steps, about half a second of plain torch on one thread. Ray's ways: function trainables,
             and a class with reuse_actors=True

Each contender has a process and a Ray (of four CPUs) of its own, and they take turns: a figure is the median of the
rounds. Seconds a trial are those between the first and the last completion, divided by the trials in between; start-up
is the time from `ray.init` to the first completion. Overhead is what a trial takes of one of the two places beyond
plain torch: the same model, batches and steps on one thread in a process of its own, in turn with the contenders. In
it, ours looks at validation after each epoch, keeps the trained model and its manifest, and tells its study.
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
from typing import Any

from rich.console import Console
from rich.table import Table

STEPS = {"gang": 20, "single": 300}
BATCH = 64
AT_A_TIME = 2
WANTED = {"gang": "≥ 20", "single": "≥ 3"}
PLAIN = "plain torch, alone"


def lenet() -> Any:
    from torch import nn

    conv1 = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    conv2 = [nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    linear = [nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*conv1, *conv2, nn.Flatten(), *linear)


def samples() -> Any:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[:1437], torch.tensor(digits.target[:1437]), images[1437:], torch.tensor(digits.target[1437:])


def train_alone(lr: float, digits: Any, steps: int = STEPS["single"]) -> float:
    """Plain torch, one worker; the accuracy on held-out samples."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y, held_x, held_y = digits
    model = lenet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(held_x).argmax(1) == held_y).float().mean())


def train_zero(config: dict[str, Any]) -> None:
    """A worker of a TorchTrainer: DeepSpeed, ZeRO 2."""
    import deepspeed
    import ray.train
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y, held_x, held_y = samples()
    model = lenet()
    options = {"type": "AdamW", "params": {"lr": config["lr"], "torch_adam": True}}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_micro_batch_size_per_gpu": BATCH // 2,
            "optimizer": options,
            "zero_optimization": {"stage": 2},
        },
    )
    for _ in range(STEPS["gang"]):
        batch = torch.randint(len(x), (BATCH // 2,))
        engine.backward(functional.cross_entropy(engine(x[batch]), y[batch]))
        engine.step()
    with torch.no_grad():
        accuracy = float((engine(held_x).argmax(1) == held_y).float().mean())
    ray.train.report({"metric": accuracy})


class Clock:
    """When trials were completed."""

    def __init__(self) -> None:
        self.started, self.done = time.monotonic(), list[float]()

    def tick(self, *_: Any) -> None:
        self.done.append(time.monotonic())

    def figures(self) -> dict[str, Any]:
        between = len(self.done) - 1
        return {
            "trials": len(self.done),
            "startup_s": self.done[0] - self.started,
            "trial_s": (self.done[-1] - self.done[0]) / between,
            "trials_a_minute": 60 * between / (self.done[-1] - self.done[0]),
        }


def ours(kind: str, trials: int) -> dict[str, Any]:
    from cluster.connect import connect
    from orchestrator import JobSpec, search

    clock = Clock()
    workers = 2 if kind == "gang" else 1
    document = {
        "name": "sweep",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"conv_widths": [6, 16], "linear_widths": [120, 84], "activation": "relu"}},
        "train": {"steps": STEPS[kind], "batch_size": BATCH},
        "resources": {"workers": workers},
        "layout": {"data": workers, "zero_stage": 2 if kind == "gang" else 0},
        "search": {
            "trials": trials,
            "algorithm": "random",
            "scheduler": "none",
            "concurrency": AT_A_TIME,
            "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}},
        },
    }
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder, connect(None, num_cpus=4):
        search(JobSpec.parse(document), runs=folder, on_trial=clock.tick)
    return clock.figures()


def tune_with(trainable: Any, trials: int, *, reuse: bool = False) -> dict[str, Any]:
    import ray
    from ray import tune

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    clock = Clock()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    class Ticking(tune.Callback):
        def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        tune.Tuner(
            trainable,
            param_space={"lr": tune.loguniform(1e-4, 1e-1)},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=AT_A_TIME, reuse_actors=reuse),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[Ticking()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if reuse else None,
            ),
        ).fit()
    ray.shutdown()
    return clock.figures()


def tune_torch_trainer(trials: int) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def driver(config: dict[str, Any]) -> None:
        TorchTrainer(
            train_zero,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(
                name=f"trial-{time.time_ns()}", storage_path=tempfile.mkdtemp(), callbacks=[TuneReportCallback()]
            ),
        ).fit()

    from ray import tune

    return tune_with(tune.with_resources(driver, {"CPU": 0.001}), trials)


def tune_function(trials: int) -> dict[str, Any]:
    def trainable(config: dict[str, Any]) -> None:
        import deepspeed  # noqa: F401 - the same imports as a worker of ours has
        from ray import tune

        tune.report({"metric": train_alone(config["lr"], samples())})

    return tune_with(trainable, trials)


def tune_reuse(trials: int) -> dict[str, Any]:
    from ray import tune

    class Reused(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import deepspeed  # noqa: F401

            self.lr, self.digits = config["lr"], samples()

        def step(self) -> dict[str, Any]:
            return {"metric": train_alone(self.lr, self.digits), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.lr = new_config["lr"]
            return True

    return tune_with(Reused, trials, reuse=True)


def plain(kind: str) -> dict[str, Any]:
    """A trial's training with nothing around it: median of five, after one that warms up."""
    seconds, digits = [], samples()
    for _ in range(6):
        started = time.monotonic()
        train_alone(1e-3, digits, STEPS[kind])
        seconds.append(time.monotonic() - started)
    return {"trial_s": statistics.median(seconds[1:])}


CONTENDERS = {
    "gang": {
        PLAIN: lambda few, many: plain("gang"),
        "thresher": lambda few, many: ours("gang", many),
        "Tune + TorchTrainer": lambda few, many: tune_torch_trainer(few),
    },
    "single": {
        PLAIN: lambda few, many: plain("single"),
        "thresher": lambda few, many: ours("single", many),
        "Tune, functions": lambda few, many: tune_function(few * 2),
        "Tune, reuse_actors": lambda few, many: tune_reuse(many),
    },
}


def alone(kind: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A contender in a process of its own."""
    command = [sys.executable, __file__, "--only", kind, name, "--trials", str(options.trials)]
    command += ["--train-trials", str(options.train_trials)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ({kind}): {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(kind: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every contender's figures, the median of each over the rounds, and the overhead that follows."""
    rounds = [{name: alone(kind, name, options) for name in CONTENDERS[kind]} for _ in range(options.rounds)]
    found: dict[str, dict[str, Any]] = {
        name: {key: statistics.median(figures[name][key] for figures in rounds) for key in rounds[0][name]}
        for name in CONTENDERS[kind]
    }
    torch_s = found[PLAIN]["trial_s"]
    for name, figures in found.items():
        if name != PLAIN:
            figures["overhead_s"] = figures["trial_s"] * AT_A_TIME - torch_s
            figures["rounds_trial_s"] = [figures_of[name]["trial_s"] for figures_of in rounds]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--train-trials", type=int, default=6, help="of the slow ways, which take half a minute each")
    parser.add_argument("--rounds", type=int, default=1, help="in which the contenders take turns")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, name = options.only
        print(json.dumps(CONTENDERS[kind][name](options.train_trials, options.trials)))
        return
    found = {kind: measured(kind, options) for kind in options.kinds}
    if options.json:
        print(json.dumps(found))
        return
    for kind, results in found.items():
        Console().print(table_of(kind, results))


def table_of(kind: str, results: dict[str, dict[str, Any]]) -> Table:
    torch_s = results[PLAIN]["trial_s"]
    title = (
        f"{kind}: {STEPS[kind]} steps ({torch_s:.2f} s of plain torch), two trials at a time (wanted: {WANTED[kind]}×)"
    )
    table = Table(title=title)
    for column in ("", "trials", "start-up", "a trial", "overhead a trial", "trials a minute", "ours is faster by"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in results.items():
        if name == PLAIN:
            continue
        lead = results["thresher"]["trials_a_minute"] / figures["trials_a_minute"]
        table.add_row(
            name,
            f"{figures['trials']:.0f}",
            f"{figures['startup_s']:.1f} s",
            f"{figures['trial_s']:.3f} s",
            f"{figures['overhead_s']:.3f} s",
            f"{figures['trials_a_minute']:.1f}",
            "" if name == "thresher" else f"{lead:.2f}×",
        )
    return table


if __name__ == "__main__":
    main()
