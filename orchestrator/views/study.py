"""One study: the trials of one phase (for one winner), ranked, with the one that went on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from jobs.records import Trial
from orchestrator.selection import Direction, Pick, best_compression, best_trials, trial_front
from orchestrator.units import format_bytes, format_metric, format_ms
from orchestrator.views.common import Subject, dig, number, show

PHASES = {"train": "Training", "compress": "Compression", "joint": "Training and compression"}
OBJECTIVE_FORMS = {"bytes": format_bytes, "latency_ms": format_ms}
OBJECTIVE_NAMES = {"bytes": "bytes of the file", "latency_ms": "p50 at batch 1"}


@dataclass(frozen=True)
class Study:
    """`name` is unique on the page; `best` is the number of the trial that the next stage took."""

    name: str
    title: str
    trials: Sequence[Trial]
    ranked: Sequence[Trial]
    best: int | None
    front: frozenset[int]
    """On the Pareto front, where there is more than one objective."""
    keys: Sequence[str]
    """What was searched, in the spec's order."""
    space: dict[str, Any]
    subject: Subject
    objectives: Sequence[str]
    """Those of this phase, the metric first."""
    importance: dict[str, Any]
    """As `orchestrator.searching.importance` says it; empty in reports that have none."""

    def key(self, trial: Trial) -> str:
        """What a trial's marks, lines and row are known by on the page."""
        return f"{self.name}-{trial.number}"

    def tip(self, trial: Trial) -> str:
        metric = self.subject.metric
        lines = [f"trial {trial.number}, {trial.state}"]
        value = reached(trial)
        if value is not None:
            lines.append(f"{metric} {format_metric(metric, value)}")
        lines += [form(trial.values[name]) for name, form in OBJECTIVE_FORMS.items() if name in trial.values]
        lines += [f"{key.split('.')[-1]} = {show(param)}" for key, param in trial.params.items()]
        return "\n".join([*lines, trial.cause] if trial.cause else lines)


def studies(search: dict[str, Any], pick: str, subject: Subject) -> list[Study]:
    """`pick`: what the compression was to be chosen by, as in the spec."""
    found = []
    parts = named_parts([_trial(document) for document in search.get("trials") or []])
    for name, part in parts.items():
        phase, _, index = name.rpartition("-")
        several = f"{phase}-1" in parts
        title = PHASES[phase] + (f", winner {int(index) + 1}" if several else "")
        found.append(_study(name, title, part, search, pick, subject))
    return found


def named_parts(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials of each study under its name: `train-0`, `compress-0` (on the first winner), `compress-1`, …"""
    return {
        f"{phase}-{index}": part
        for phase in PHASES
        for index, part in enumerate(_parts([trial for trial in trials if trial.phase == phase]))
    }


def short_key(key: str) -> str:
    """The last two parts of a path into the spec: `optimizer.lr`."""
    return ".".join(key.split(".")[-2:])


def reached(trial: Trial) -> float | None:
    """A completed trial's metric; for another one the last it had."""
    if trial.state == "completed":
        return number(trial.values.get("metric"))
    known = [value for value in trial.curve if math.isfinite(value)]
    return known[-1] if known else None


def _study(name: str, title: str, trials: list[Trial], search: dict[str, Any], pick: str, subject: Subject) -> Study:
    space = search.get("space") or {}
    present = {key for trial in trials for key in trial.params}
    listed = [key for key in space if key in present]
    objectives: dict[str, Direction] = {"metric": subject.direction}
    objectives |= {key: "min" for key in OBJECTIVE_FORMS if key in (search.get("objectives") or {})}
    ranked = best_trials(trials, direction=subject.direction, count=len(trials))
    if trials[0].phase == "train" or pick not in get_args(Pick):
        best = ranked[0] if ranked else None
    else:
        best = best_compression(trials, pick=cast(Pick, pick), metric_direction=subject.direction)
    return Study(
        name=name,
        title=title,
        trials=trials,
        ranked=ranked,
        best=None if best is None else best.number,
        front=frozenset(trial_front(trials, objectives)) if len(objectives) > 1 else frozenset(),
        keys=listed + sorted(present - set(listed)),
        space=space,
        subject=subject,
        objectives=["metric"] if trials[0].phase == "train" else list(objectives),
        importance=dig(search, f"importance.{name}", {}),
    )


def _parts(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials of a phase, one list a winner: each winner's compression counts its trials anew."""
    parts: list[list[Trial]] = []
    seen: set[int] = set()
    for trial in trials:
        if not parts or trial.number in seen:
            parts.append([])
            seen = set()
        parts[-1].append(trial)
        seen.add(trial.number)
    return parts


def _trial(document: dict[str, Any]) -> Trial:
    """A trial from its JSON, where what is not a number may stand as text or null."""
    values = {name: number(value) for name, value in (document.get("values") or {}).items()}
    curve = (number(value) for value in document.get("curve") or ())
    return Trial.from_json(
        {
            **document,
            "values": {name: value for name, value in values.items() if value is not None},
            "curve": [math.nan if value is None else value for value in curve],
            "violation": number(document.get("violation")) or 0.0,
            "seconds": number(document.get("seconds")) or 0.0,
        }
    )
