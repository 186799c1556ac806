"""How far a search is: the best so far, what stopped the others, the time that is left. From its events alone."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """One trial as a display shows it. `metric` is the last one that is known, of validation."""

    state: str
    params: dict[str, Any]
    epochs: int = 0
    metric: float | None = None
    seconds: float | None = None
    """What a finished trial took."""
    since: float = 0.0
    """When a running one began, on the clock of the events."""


@dataclass
class SearchTally:
    """What a search's events add up to.

    Attributes:
        total: trials that there will be.
        slots: how many run at a time.
    """

    total: int = 0
    slots: int = 1
    higher_is_better: bool = True
    rows: dict[int, Row] = field(default_factory=dict)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "search_started":
                self.rows, self.causes = {}, Counter()
                self.total, self.slots = event["trials"], max(1, event.get("slots", 1))
                self.higher_is_better = event["direction"] == "max"
                for trial in event.get("done", ()):
                    self._finish(trial)
            case "trial_started":
                self.rows[event["trial"]] = Row("running", event["params"], since=event.get("t", 0.0))
            case "trial_epoch":
                row = self.rows.setdefault(event["trial"], Row("running", {}, since=event.get("t", 0.0)))
                row.epochs, row.metric = row.epochs + 1, event["metric"]
            case "trial":
                self._finish(event)

    def _finish(self, trial: dict[str, Any]) -> None:
        self.rows[trial["number"]] = Row(
            state=trial["state"],
            params=trial["params"],
            epochs=trial["epochs"],
            metric=trial["values"].get("metric", trial["curve"][-1] if trial["curve"] else None),
            seconds=trial.get("seconds"),
        )
        if trial["state"] != "completed":
            self.causes[trial["state"], kind_of_cause(trial["cause"])] += 1

    @property
    def finished(self) -> int:
        return sum(row.state != "running" for row in self.rows.values())

    @property
    def best(self) -> int | None:
        """The number of the completed trial with the best metric."""
        sign = 1.0 if self.higher_is_better else -1.0
        done = [
            (sign * row.metric, -number)
            for number, row in self.rows.items()
            if row.state == "completed" and row.metric is not None
        ]
        return -max(done)[1] if done else None

    def left_s(self, now: float) -> float | None:
        """Seconds until all trials are done: their mean duration, over the slots. None before the first one ended.

        What is repeated (0 s) tells nothing of the others. A running trial has what it took already behind it; the
        last ones to end leave slots empty, so it takes no less than the longest of those that run still needs.
        """
        took = [row.seconds for row in self.rows.values() if row.state != "running" and row.seconds]
        if not took:
            return None
        mean = sum(took) / len(took)
        running = [max(0.0, mean - (now - row.since)) for row in self.rows.values() if row.state == "running"]
        waiting = max(0, self.total - self.finished - len(running))
        if not running and not waiting:
            return 0.0
        return max([(sum(running) + waiting * mean) / min(self.slots, len(running) + waiting), *running])

    def stops(self) -> str:
        """Trials that did not complete, counted by cause: `2 pruned (stopped by the scheduler after n epochs)`."""
        return ", ".join(f"{count} {state} ({cause})" for (state, cause), count in self.causes.most_common(4))


def kind_of_cause(cause: str) -> str:
    """A cause without its figures, so that those of one kind count together; one line, not too long.

    >>> kind_of_cause("stopped by the scheduler after 2 epochs")
    'stopped by the scheduler after n epochs'
    """
    line = re.sub(
        r"(?<![\w.])[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?![\w.]*\w)", "n", (cause or "no cause given").split("\n")[0]
    )
    return line if len(line) <= 70 else line[:69].rstrip() + "…"
