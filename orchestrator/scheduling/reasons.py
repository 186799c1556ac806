"""Why a job waits, in words."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache

from orchestrator.scheduling.ledger import NEVER
from orchestrator.scheduling.records import Demand, Job


def amounts_text(amounts: Mapping[str, int], zeros: bool = False) -> str:
    """
    >>> amounts_text({"CPU": 4000, "GPU": 500, "memory": 16 * 10**12})
    '4 CPU, 0.5 GPU, 16 GB memory'
    """
    parts = []
    for name, amount in amounts.items():
        if amount or zeros:
            parts.append(f"{amount / 1e12:.12g} GB memory" if name == "memory" else f"{amount / 1000:.12g} {name}")
    return ", ".join(parts)


def gang_text(demand: Demand) -> str:
    """
    >>> gang_text(Demand.of(2, CPU=4)), gang_text(Demand.of(1, CPU=1, GPU=1)), gang_text(Demand.of(2, CPU=1, GPU=1))
    ('2 × 4 CPU', '1 CPU, 1 GPU', '2 × (1 CPU, 1 GPU)')
    """
    bundle = amounts_text(dict(demand.bundle))
    if demand.workers == 1:
        return bundle
    return f"{demand.workers} × ({bundle})" if len(demand.bundle) > 1 else f"{demand.workers} × {bundle}"


def clock(time_ms: int, now_ms: int) -> str:
    """UTC, with the day when it is another one.

    >>> clock(45_600_000, 0), clock(132_000_000, 0)
    ('12:40', '1970-01-02 12:40')
    """
    then, now = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (time_ms, now_ms))
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"


def reserved_text(start_ms: int, now_ms: int) -> str:
    if start_ms >= NEVER:
        return "reserved for when jobs without a time limit have ended"
    return f"reserved at {clock(start_ms, now_ms)}"


def behind_text(job: Job) -> str:
    return f"behind job {job.id} (priority {job.priority})"


@lru_cache(4096)
def nodes_text(demand: Demand, room: int, kept: bool) -> str:
    """`room`: how many of the workers fit now; `kept`: whether there is room, but others were promised it."""
    text = f"waiting for {gang_text(demand)}"
    if kept:
        return f"{text}: there is room, but jobs ahead were promised it"
    return text if demand.workers == 1 else f"{text}: room for {room} now"


@lru_cache(4096)
def quota_text(project: str, short: tuple[tuple[str, int, int], ...]) -> str:
    """`short`: (resource, needed, available) where too little is."""
    needs = amounts_text({name: need for name, need, _ in short})
    left = amounts_text({name: max(0, available) for name, _, available in short}, zeros=True)
    return f"waiting for {needs} of quota: project {project} has {left} left, borrowing included"


def victims_text(victims: Iterable[str]) -> str:
    names = sorted(victims)
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"waiting for job{'s' if len(names) > 1 else ''} {shown} to leave"
