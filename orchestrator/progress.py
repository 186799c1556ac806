"""What a person sees of a run under way: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from orchestrator.searching.progress import SearchTally
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
    "search_ended",
    "warning",
    "failed",
)
"""Events that stay above the live display."""


class PlainProgress:
    """One line for what matters: stages, epochs, trials, losses of workers; else a sign of life.

    Of epochs that follow closely on one another most are passed over, never the last one of a training.
    """

    QUIET_S = 15.0
    EPOCH_S = 2.0

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.started = self.spoke = time.monotonic()
        self.epoch_shown: dict[str, float] = {}
        self.search = SearchTally()

    def __call__(self, event: dict[str, Any]) -> None:
        self.search(event)
        line = "" if self._too_soon(event) else describe(event)
        if event["event"] == "trial":
            line += f" [{standing(self.search, event.get('t', 0.0))}]"
        elif event["event"] == "search_finished" and (stops := self.search.stops()):
            line = f"not completed: {stops}"
        if not line and time.monotonic() - self.spoke > self.QUIET_S:
            line = sign_of_life(event)
        if line:
            self.spoke = time.monotonic()
            self.out.write(f"[{time.monotonic() - self.started:7.1f} s] {line}\n")
            self.out.flush()

    def _too_soon(self, event: dict[str, Any]) -> bool:
        if event["event"] != "epoch":
            return False
        now = time.monotonic()
        before = self.epoch_shown.get(event["label"])
        if before is not None and now - before < self.EPOCH_S and event["step"] < event["total_steps"]:
            return True
        self.epoch_shown[event["label"]] = now
        return False


def standing(search: SearchTally, now: float) -> str:
    """How far a search is: `3/16, best 0.9312 (trial 2), about 40 s left`."""
    parts = [f"{search.finished}/{search.total}"]
    if (best := search.best) is not None:
        parts.append(f"best {search.rows[best].metric:.4g} (trial {best})")
    if left := search.left_s(now):
        parts.append(f"about {format_seconds(left)} left")
    return ", ".join(parts)


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
            there = f", {len(event['done'])} there already" if event.get("done") else ""
            return f"{event['stage']}: {event['trials']} trials{there}"
        case "search_ended":
            return f"{event['stage']}: ended early, {event['finished']}/{event['trials']} trials: {event['reason']}"
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
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        search = self.search = SearchTally()

        class Left(TimeRemainingColumn):
            """Of a search: from its trials, which run several at a time; else from the bar's own speed."""

            def render(self, task: Task) -> Text:
                if not search.rows:
                    return super().render(task)
                left = search.left_s(time.time())
                return Text("" if left is None else f"about {format_seconds(left)} left", style="progress.remaining")

        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            Left(),
            console=console,
        )
        self.console = console
        self.task = self.bar.add_task("starting", total=None, note="")
        self.label = ""
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
            self._show(event["stage"], total=event["trials"])
        self.search(event)
        if kind in ("search_started", "trial"):
            best = self.search.best
            note = "" if best is None else f"best {self.search.rows[best].metric:.4g} (trial {best})"
            self.bar.update(self.task, completed=self.search.finished, note=note)
        if kind == "search_finished" and (stops := self.search.stops()):
            self.console.print(f"  not completed: {stops}", highlight=False, markup=False)
        if kind in LASTING:
            self.console.print(f"  {describe(event)}", highlight=False, markup=False)
        if kind == "search_ended" or (kind == "stage" and event["stage"].startswith("search")):
            self.search.rows.clear()

    def _show(self, label: str, total: int | None) -> None:
        if label != self.label:
            self.label = label
            self.bar.reset(self.task, description=label, total=total, note="")

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self.search.rows:
            return self.bar
        table = Table(box=None, padding=(0, 2), title_justify="left")
        for column in ("", "trial", "state", "epochs", "metric", "values"):
            table.add_column(column, justify="left" if column in ("state", "values") else "right")
        for number in self._rows_shown():
            row = self.search.rows[number]
            values = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.params.items())
            best = number == self.search.best
            metric = "" if row.metric is None else f"{row.metric:.4g}"
            table.add_row(
                "best" if best else "",
                str(number),
                row.state,
                str(row.epochs),
                metric,
                values,
                style="bold" if best else ("dim" if row.state in ("pruned", "failed") else ""),
            )
        stops = self.search.stops()
        return Group(table, self.bar, Text(f"not completed: {stops}")) if stops else Group(table, self.bar)

    def _rows_shown(self) -> list[int]:
        """The newest trials, and the best one above them wherever it stands."""
        newest = sorted(self.search.rows)[-self.ROWS :]
        best = self.search.best
        return newest if best is None or best in newest else [best, *newest[1:]]


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
