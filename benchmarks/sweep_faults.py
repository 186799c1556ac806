"""A sweep under fire: workers are killed at random moments, and every trial must still end, once.

    python benchmarks/sweep_faults.py [--trials 100] [--kills 20] [--seed 0] [--disturbed]

Prints what became of the trials, how long the sweep took against an undisturbed one, and what is left behind; ends
with exit code 1 if a trial is missing, was booked twice, or failed, or if anything is left.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator import JobSpec, run
from orchestrator.runs import read_lines

SWEEP: dict[str, Any] = {
    "name": "sweep",
    "data": {"source": {"kind": "builtin", "name": "digits"}, "split": {"validation": 0.2, "test": 0.2}},
    "model": {"name": "mlp", "args": {"hidden": [32]}},
    "train": {"epochs": 12, "batch_size": 32, "checkpoint": {"every_steps": 20}},
    "search": {
        "algorithm": "random",
        "scheduler": "none",
        "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
    },
}


class Killer(threading.Thread):
    """Kills a random worker of a gang so many times, at random moments between the first trial's end and the last's."""

    def __init__(self, kills: int, trials: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.draw, self.over = random.Random(seed), threading.Event()
        # In trials that have ended, not in seconds: else a slow machine has seen all of them before its first trial.
        self.moments = sorted(self.draw.uniform(0.0, 0.95 * trials) for _ in range(kills))
        self.ended = self.done = 0

    def see(self, event: dict[str, Any]) -> None:
        """A listener of the run."""
        self.ended += event["event"] == "trial"

    def run(self) -> None:
        while self.done < len(self.moments) and not self.over.wait(self.draw.uniform(0.1, 1.0)):
            if self.ended < self.moments[self.done]:
                continue
            workers = []
            for child in psutil.Process(os.getpid()).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if child.name().startswith("ray::Member"):
                        workers.append(child)
            if workers:
                with suppress(psutil.NoSuchProcess):
                    self.draw.choice(workers).kill()
                    self.done += 1


def sweep(folder: Path, trials: int, kills: int, seed: int) -> tuple[list[str], float, int]:
    """(what is wrong, seconds, kills that were done)."""
    killer = Killer(kills, trials, seed)
    values = {"search.trials": trials, "retry.max_failures": kills}
    killer.start()
    started = time.monotonic()
    try:
        report = run(JobSpec.parse(SWEEP).replace(values), runs=folder, listeners=(killer.see,))
    finally:
        killer.over.set()
    seconds = time.monotonic() - started
    assert report.search is not None
    wrong = []
    (events,) = folder.glob("*/events.jsonl")
    booked = Counter(event["number"] for event in read_lines(events) if event["event"] == "trial")
    if missing := sorted(set(range(trials)) - set(booked)):
        wrong.append(f"lost: {missing}")
    if twice := sorted(number for number, times in booked.items() if times > 1):
        wrong.append(f"booked twice: {twice}")
    states = Counter(trial["state"] for trial in report.search["trials"])
    if states != {"completed": trials}:
        wrong.append(f"states: {dict(states)}")
    if left := [str(path) for name in ("*.partial", "tune", "begun") for path in folder.rglob(name)]:
        wrong.append(f"left behind: {left}")
    return wrong, seconds, killer.done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disturbed", action="store_true", help="leave out the undisturbed sweep")
    arguments = parser.parse_args()
    failed = False
    for kills in (arguments.kills,) if arguments.disturbed else (0, arguments.kills):
        folder = Path(tempfile.mkdtemp(prefix="sweep-"))
        try:
            wrong, seconds, done = sweep(folder, arguments.trials, kills, arguments.seed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        words = "; ".join(wrong) or "each ended once, nothing is left"
        print(f"{arguments.trials} trials, {done} of {kills} kills: {words}; {seconds:.0f} s", flush=True)
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
