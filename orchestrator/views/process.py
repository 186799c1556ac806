"""How the run went: where the time was spent, the stages, the environment, the spec."""

from dataclasses import dataclass
from typing import Any

import yaml

from jobs.records import Goodput, RunReport
from orchestrator.units import format_bytes, format_seconds
from orchestrator.views.common import number, show

_SHARES = ("queued", "startup", "productive", "checkpoint", "recompute", "restart")


@dataclass(frozen=True)
class TimeShare:
    name: str
    seconds: str
    percent: float


@dataclass(frozen=True)
class StageRow:
    name: str
    reused: bool
    seconds: str
    percent: float
    hash: str


@dataclass(frozen=True)
class ProcessView:
    shares: tuple[TimeShare, ...]
    ettr: str
    wall: str
    restarts: tuple[str, ...]
    stages: tuple[StageRow, ...]
    environment: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    spec: str


def process_view(report: RunReport) -> ProcessView:
    longest = max((number(stage.get("seconds")) or 0.0 for stage in report.stages), default=0.0)
    return ProcessView(
        shares=_shares(report.goodput),
        ettr=f"{100 * report.goodput.ettr:.0f} %",
        wall=format_seconds(report.goodput.wall_s),
        restarts=tuple(_restart(one) for one in report.goodput.restarts),
        stages=tuple(_stage(stage, longest) for stage in report.stages),
        environment=tuple(_environment(report.environment)),
        spec=yaml.safe_dump(report.spec, sort_keys=False, allow_unicode=True, width=100),
    )


def _shares(goodput: Goodput) -> tuple[TimeShare, ...]:
    """Parts of the wall time; what no part claims is `other`."""
    seconds = {name: max(0.0, getattr(goodput, f"{name}_s")) for name in _SHARES}
    seconds["other"] = max(0.0, goodput.wall_s - sum(seconds.values()))
    total = sum(seconds.values()) or 1.0
    return tuple(
        TimeShare(name, format_seconds(value), 100 * value / total)
        for name, value in seconds.items()
        if value > 0.0005 * total or name == "productive"
    )


def _stage(stage: dict[str, Any], longest: float) -> StageRow:
    seconds = number(stage.get("seconds")) or 0.0
    reused = bool(stage.get("reused"))
    return StageRow(
        name=str(stage.get("name", "")),
        reused=reused,
        seconds=format_seconds(seconds),
        percent=100 * seconds / longest if longest > 0 else 0.0,
        hash=str(stage.get("hash") or ""),
    )


def _restart(restart: dict[str, Any]) -> str:
    """`train: worker 1 was lost`, or whatever else is known of it."""
    facts = {key: show(value) for key, value in restart.items() if key != "t"}
    head = ": ".join(facts.pop(key) for key in ("stage", "cause") if key in facts)
    return ", ".join(filter(None, (head, *(f"{key} {value}" for key, value in facts.items()))))


def _environment(environment: dict[str, Any]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Tables by name; what is no table stands in one of its own."""
    tables, loose = [], []
    for name, value in environment.items():
        if isinstance(value, dict):
            tables.append((str(name), tuple(_fact(str(key), item) for key, item in value.items())))
        else:
            loose.append(_fact(str(name), value))
    return [*tables, *([("other", tuple(loose))] if loose else [])]


def _fact(name: str, value: Any) -> tuple[str, str]:
    """A name and a value in words; `memory_bytes` is read as a size."""
    if name.endswith("_bytes") and (size := number(value)) is not None:
        return name.removesuffix("_bytes"), format_bytes(size)
    if isinstance(value, dict):
        return name, ", ".join(f"{key} {show(item)}" for key, item in value.items())
    return name, show(value)
