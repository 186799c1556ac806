"""What a person sees of a run under way: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from orchestrator.units import format_seconds

LASTING = (
    "started",
    "prepared",
    "connected",
    "workers_started",
    "stage",
    "restart",
    "resize",
    "resumed",
    "warning",
    "failed",
)
"""Events that stay above the live display."""


class PlainProgress:
    """One line for what matters: stages, epochs, trials, losses of workers; else a sign of life."""

    QUIET_S = 15.0

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.started = self.spoke = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        line = describe(event)
        if not line and time.monotonic() - self.spoke > self.QUIET_S:
            line = sign_of_life(event)
        if line:
            self.spoke = time.monotonic()
            self.out.write(f"[{time.monotonic() - self.started:7.1f} s] {line}\n")
            self.out.flush()


def describe(event: dict[str, Any]) -> str:
    """An event in words; empty for those that nobody needs to read."""
    match event["event"]:
        case "started":
            return f"run {event['run_id']}"
        case "prepared":
            return f"prepare: {'there already' if event['reused'] else format_seconds(event['seconds'])}"
        case "connected":
            return f"Ray is up ({format_seconds(event['seconds'])})"
        case "workers_started":
            return f"{event['workers']} worker{'s' * (event['workers'] != 1)} warm ({format_seconds(event['seconds'])})"
        case "stage":
            took = "there already" if event["reused"] else format_seconds(event["seconds"])
            return f"{event['stage']}: {took}"
        case "epoch":
            metric, loss = event["metric"], event["loss"]
            done = f"{event['step']}/{event['total_steps']} steps"
            return (
                f"{event['label']}: epoch {event['epoch']:.4g}, {done}, validation loss {loss:.4g}, metric {metric:.4g}"
            )
        case "search_started":
            return f"{event['stage']}: {event['trials']} trials"
        case "trial":
            value = event["values"].get("metric", event["curve"][-1] if event["curve"] else None)
            shown = f"metric {value:.4g}, " if value is not None else ""
            cause = f" ({event['cause']})" if event["cause"] else ""
            params = ", ".join(
                f"{k.rsplit('.', 1)[-1]}={v:.4g}" if isinstance(v, float) else f"{k.rsplit('.', 1)[-1]}={v}"
                for k, v in event["params"].items()
            )
            return f"trial {event['number']}: {event['state']}{cause}, {shown}{event['epochs']} epochs; {params}"
        case "protected":
            return f"left whole, since pruning costs the most there: {', '.join(event['layers'])}"
        case "resize":
            return f"{event['stage']}: goes on with {event['workers']} worker{'s' * (event['workers'] != 1)}"
        case "warning":
            return f"warning: {event['message']}"
        case "restart":
            return f"{event['stage']}: a worker was lost ({event['cause']}); starting again from the last checkpoint"
        case "resumed":
            return f"{event['label']}: goes on from step {event['step']}"
        case "interrupted":
            return "interrupted"
        case "failed":
            return f"failed: {event['error']}"
    return ""


def sign_of_life(event: dict[str, Any]) -> str:
    """How far work is; empty for events that tell nothing of it."""
    if event["event"] == "step":
        return f"{event['label']}: {event['step']}/{event['total_steps']} steps, loss {event['loss']:.4g}"
    if event["event"] == "trial_epoch":
        return f"trial {event['trial']}: epoch {event['epoch']:.4g}, metric {event['metric']:.4g}"
    return ""


class LiveProgress:
    """Stage, progress bar with ETA, and the table of trials with the best so far; finished stages scroll above."""

    ROWS = 12

    def __init__(self, console: Any) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.console = console
        self.task = self.bar.add_task("starting", total=None, note="")
        self.label = ""
        self.best: Callable[[list[float]], float] = max
        self.trials: dict[int, dict[str, Any]] = {}
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "stage_started":
            self._show(event["stage"], total=None)
        elif kind == "connecting":
            self._show("starting Ray" if event["address"] is None else f"Ray at {event['address']}", total=None)
        elif kind in ("step", "epoch"):
            self._show(event["label"], total=event["total_steps"])
            note = f"loss {event['loss']:.4g}" + (
                f", metric {event['metric']:.4g}" if event["metric"] is not None else ""
            )
            self.bar.update(self.task, completed=event["step"], note=note)
        elif kind == "search_started":
            self.trials.clear()
            self.best = max if event["direction"] == "max" else min
            self._show(event["stage"], total=event["trials"])
        elif kind == "trial_started":
            self.trials[event["trial"]] = {"state": "running", "params": event["params"], "epochs": 0, "metric": None}
        elif kind == "trial_epoch":
            row = self.trials.setdefault(event["trial"], {"state": "running", "params": {}, "epochs": 0})
            row["epochs"], row["metric"] = row["epochs"] + 1, event["metric"]
        elif kind == "trial":
            value = event["values"].get("metric", event["curve"][-1] if event["curve"] else None)
            self.trials[event["number"]] = {**{k: event[k] for k in ("state", "params", "epochs")}, "metric": value}
            self.bar.update(self.task, advance=1, note=self._best_so_far())
        if kind in (
            "stage",
            "prepared",
            "connected",
            "workers_started",
            "restart",
            "resize",
            "warning",
            "resumed",
            "failed",
            "started",
        ):
            self.console.print(f"  {describe(event)}", highlight=False, markup=False)
        if kind == "stage" and event["stage"].startswith("search"):
            self.trials.clear()

    def _best_so_far(self) -> str:
        values = [row["metric"] for row in self.trials.values() if row["state"] == "completed"]
        return f"best {self.best(values):.4g}" if values else ""

    def _show(self, label: str, total: int | None) -> None:
        if label != self.label:
            self.label = label
            self.bar.reset(self.task, description=label, total=total, note="")

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        if not self.trials:
            return self.bar
        table = Table(box=None, padding=(0, 2), title_justify="left")
        for column in ("trial", "state", "epochs", "metric", "values"):
            table.add_column(column, justify="left" if column in ("state", "values") else "right")
        for number in sorted(self.trials)[-self.ROWS :]:
            row = self.trials[number]
            metric = row.get("metric")
            values = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row["params"].items())
            table.add_row(
                str(number), row["state"], str(row["epochs"]), "" if metric is None else f"{metric:.4g}", values
            )
        return Group(table, self.bar)


@contextmanager
def progress_on(out: TextIO, *, quiet: bool) -> Iterator[Any]:
    """A listener for a run's events: live on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        yield lambda event: None
    elif out.isatty():
        from rich.console import Console

        live = LiveProgress(Console(file=out))
        with live.live:
            yield live
    else:
        yield PlainProgress(out)


def _restarted(event: dict[str, Any]) -> str:
    return f"predict: a worker was lost ({event['cause']}); starting again" if event["event"] == "restart" else ""


class PlainPrediction:
    """A line now and then of how far a long prediction is."""

    EVERY_S = 5.0

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.started = self.spoke = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        line = _restarted(event) or describe(event)
        if event["event"] == "predicted" and now - self.spoke >= self.EVERY_S:
            line = f"predict: {event['done'] / max(1, event['total']):.0%}"
        if not line:
            return
        self.spoke = now
        self.out.write(f"[{now - self.started:7.1f} s] {line}\n")
        self.out.flush()


@contextmanager
def prediction_progress(out: TextIO, *, quiet: bool) -> Iterator[Any]:
    """A listener for a prediction's events: a bar on a terminal, lines elsewhere, nothing when quiet."""
    if quiet or not out.isatty():
        yield PlainPrediction(out) if not quiet else lambda event: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=out), transient=True) as bar:
        task = bar.add_task("predicting", total=None)

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "predicted":
                bar.update(task, completed=event["done"], total=event["total"])
            elif described := _restarted(event) or describe(event):
                bar.console.print(f"  {described}", highlight=False, markup=False)

        yield listen
