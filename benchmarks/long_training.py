"""Time to the first step, time lost to a killed worker, and goodput under faults: Thresher against bare Ray Train.

    python benchmarks/long_training.py [--window 360] [--every 60] [--json]

Both train LeNet on the digits with two workers, the same batch and a checkpoint every 200 steps. The bare script is
`bare_ray_train.py`. A worker is killed with -9 every so many seconds. Goodput: the steps that were reached in the
window, times the seconds of an undisturbed step, over the window, start-up included.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

CHECKPOINT_EVERY = 200
BATCH = 64
ENDLESS = 10**7
SPEC = {
    "name": "long",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet", "args": {"conv_widths": [6, 16], "linear_widths": [120, 84], "activation": "relu"}},
    "train": {"steps": ENDLESS, "batch_size": BATCH, "checkpoint": {"every_steps": CHECKPOINT_EVERY}},
    "layout": {"data": 2},
    "resources": {"workers": 2},
    "retry": {"max_failures": 1000},
}


@dataclass(frozen=True)
class Progress:
    """A step that was reached, and when."""

    step: int
    t: float


class Contender(ABC):
    """One of the two, in a session of its own."""

    name: str
    worker: str
    """How its workers' processes are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = time.time()
        log = (folder / "log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def progress(self) -> list[Progress]:
        """The steps that it has told of."""

    def workers(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in below if self.worker in _name(child)]
        return []

    def wait_for(self, reached: Callable[[list[Progress]], bool], timeout_s: float = 300.0) -> list[Progress]:
        deadline = time.time() + timeout_s
        while not reached(found := self.progress()):
            if time.time() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.name} stands still: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        return found

    def kill_a_worker(self) -> bool:
        for worker in self.workers()[-1:]:
            worker.kill()
            return True
        return False

    def close(self) -> None:
        everyone = [process for process in psutil.process_iter() if _session(process) == self.process.pid]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()


class Thresher(Contender):
    name = "thresher"
    worker = "ray::Member"

    def command(self) -> list[str]:
        (self.folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        return [
            *(sys.executable, "-m", "orchestrator.cli", "run"),
            *(str(self.folder / "spec.yaml"), "--runs", str(self.folder / "runs")),
        ]

    def progress(self) -> list[Progress]:
        return [
            Progress(event["step"], event["t"])
            for path in self.folder.glob("runs/*/events.jsonl")
            for event in _lines(path)
            if event["event"] == "step"
        ]


class Bare(Contender):
    name = "bare Ray Train"
    worker = "ray::RayTrainWorker"

    def command(self) -> list[str]:
        config = {
            "steps": ENDLESS,
            "batch_size": BATCH,
            "checkpoint_every": CHECKPOINT_EVERY,
            "progress": str(self.folder / "progress.jsonl"),
        }
        return [sys.executable, str(Path(__file__).with_name("bare_ray_train.py")), json.dumps(config)]

    def progress(self) -> list[Progress]:
        path = self.folder / "progress.jsonl"
        return [Progress(**line) for line in _lines(path)] if path.exists() else []


def measure(kind: type[Contender], folder: Path, window_s: float, every_s: float) -> dict[str, Any]:
    """One run under the schedule of faults."""
    folder.mkdir()
    run = kind(folder)
    try:
        first = run.wait_for(bool)[0].t - run.started
        undisturbed = run.wait_for(lambda found: found[-1].t - found[0].t > every_s / 3)
        step_s = (undisturbed[-1].t - undisturbed[0].t) / max(1, undisturbed[-1].step - undisturbed[0].step)
        lost, due = [], run.started + every_s
        while time.time() < run.started + window_s:
            if time.time() < due:
                time.sleep(0.1)
                continue
            due += every_s
            before = run.progress()[-1].step
            if not run.kill_a_worker():
                continue  # it is still starting: nobody is there to be killed
            killed_at = time.time()
            with suppress(RuntimeError):
                passed = run.wait_for(_beyond(before, killed_at), run.started + window_s - killed_at)
                lost.append(passed[-1].t - killed_at)
        reached = max(each.step for each in run.progress())
    finally:
        run.close()
    return {
        "first_step_s": first,
        "step_s": step_s,
        "lost_s": statistics.median(lost) if lost else None,
        "kills": len(lost),
        "steps": reached,
        "goodput": reached * step_s / window_s,
    }


def _beyond(step: int, t: float) -> Callable[[list[Progress]], bool]:
    return lambda found: found[-1].t > t and found[-1].step > step


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last one may be under way
            found.append(json.loads(line))
    return found


def _name(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()[:1]])
    except psutil.Error:
        return ""


def _session(process: psutil.Process) -> int:
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return -1
    return int(fields[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=float, default=360.0, help="seconds of each run")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-", ignore_cleanup_errors=True) as folder:
        kinds: tuple[type[Contender], ...] = (Thresher, Bare)
        found = {
            kind.name: measure(kind, Path(folder) / str(index), options.window, options.every)
            for index, kind in enumerate(kinds)
        }
    ours, bare = found[Thresher.name], found[Bare.name]
    ratios = {
        name: ours[name] / bare[name] if ours[name] and bare[name] else None
        for name in ("first_step_s", "lost_s", "goodput")
    }
    if options.json:
        print(json.dumps({"window_s": options.window, "every_s": options.every, **found, "ratios": ratios}))
        return
    table = Table(title=f"a worker killed every {options.every:g} s of {options.window:g} s")
    for column in ("", Thresher.name, Bare.name, "ratio", "wanted"):
        table.add_column(column, justify="right" if column else "left")
    wanted = {"first_step_s": "≤ 0.8", "lost_s": "≤ 0.5", "goodput": "> 1"}
    for name in ("first_step_s", "lost_s", "goodput", "step_s", "steps", "kills"):
        cells = [f"{each[name]:.4g}" if each[name] is not None else "" for each in (ours, bare)]
        ratio = ratios.get(name)
        table.add_row(name, *cells, f"{ratio:.2f}" if ratio else "", wanted.get(name, ""))
    Console().print(table)


if __name__ == "__main__":
    main()
