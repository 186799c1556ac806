"""The queue: `decide` says what is to start, to leave and to wait, and why. It has no effects of its own."""

from orchestrator.scheduling.admission import refusal
from orchestrator.scheduling.deciding import apply, decide
from orchestrator.scheduling.records import (
    Decision,
    Demand,
    DropClaim,
    Gang,
    Job,
    Node,
    Pending,
    Policy,
    Preempt,
    Project,
    Quota,
    Refuse,
    Snapshot,
    Start,
    Wait,
    milli,
)

__all__ = [
    "Decision",
    "Demand",
    "DropClaim",
    "Gang",
    "Job",
    "Node",
    "Pending",
    "Policy",
    "Preempt",
    "Project",
    "Quota",
    "Refuse",
    "Snapshot",
    "Start",
    "Wait",
    "apply",
    "decide",
    "milli",
    "refusal",
]
