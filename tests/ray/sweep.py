"""Searches that are disturbed while they run: whose processes are killed, and what is left of them."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from orchestrator.runs import read_lines

DIGITS: dict[str, Any] = {
    "name": "sweep",
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64},
    },
    "model": {"name": "mlp", "args": {"hidden": [32]}},
    "train": {"epochs": 3, "batch_size": 32, "checkpoint": {"every_steps": 20}},
    "search": {
        "trials": 8,
        "algorithm": "random",
        "scheduler": "none",
        "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
    },
}


def workers_of(pid: int, kind: str) -> list[psutil.Process]:
    """The Ray actors of a class ("Member": a gang's workers, "TrialActor") below a driver."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if child.name().startswith(f"ray::{kind}"[:15]):
                    found.append(child)
    return found


@contextmanager
def killing(pid: int, kind: str, times: int, apart_s: tuple[float, float], seed: int = 0) -> Iterator[list[float]]:
    """Kills a random actor of a class so many times, at random moments; yields the times of the kills."""
    draw, ended, kills = random.Random(seed), threading.Event(), list[float]()

    def strike() -> None:
        while len(kills) < times and not ended.wait(draw.uniform(*apart_s)):
            if alive := workers_of(pid, kind):
                with suppress(psutil.NoSuchProcess):
                    draw.choice(alive).kill()
                    kills.append(time.monotonic())

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield kills
    finally:
        ended.set()
        thread.join()


def events(storage: Path) -> list[dict[str, Any]]:
    return [event for path in storage.glob("*/events.jsonl") for event in read_lines(path)]


def wait_for(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
    return found


def remains(storage: Path) -> list[Path]:
    """What a finished search must not leave: unfinished stages, Tune's folders, notes of its own."""
    return [*storage.rglob("*.partial"), *storage.rglob("tune"), *storage.rglob("begun")]
