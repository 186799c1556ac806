"""What may be concluded about an attempt. Pure: what Ray says and what the run directory says go in.

An attempt is over only when Ray says so, or when Ray provably knows it no longer. How it ended, the run directory
tells: success is a complete report, failure is an event that the run itself wrote. All else was the cluster's fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.scheduling.retry import Cause
from orchestrator.store import AttemptRecord, AttemptState

_CLUSTERS_FAULT = frozenset({"WorkerLost", "ClusterUnreachable"})
_NEVER_BETTER = frozenset({"SpecError", "DataError"})

Seen = Literal["pending", "running", "ended", "unknown", "unreachable"]
"""What Ray says of a submission. `unknown`: it answers, and knows no such id."""


@dataclass(frozen=True)
class RunEvidence:
    """What the run directory says. `failure` is the class and text of the error that this attempt wrote down."""

    complete: bool = False
    failure: tuple[str, str] | None = None


@dataclass(frozen=True)
class Keep:
    """Nothing is known that was not known before; `reachable` says whether Ray answered."""

    reachable: bool


@dataclass(frozen=True)
class Submit:
    """Ray has never had it: the same id is submitted, again or for the first time."""


@dataclass(frozen=True)
class Progress:
    """Ray has it; `alive`: its driver runs."""

    alive: bool


@dataclass(frozen=True)
class Gone:
    """It runs no more. `outcome` is succeeded, failed, cancelled, limit, preempted or lost."""

    outcome: Literal["succeeded", "failed", "cancelled", "limit", "preempted", "lost"]
    cause: Cause | None
    detail: str
    final: bool = False
    """Trying again would give the same."""
    seen_to_end: bool = True
    """False: Ray forgot it, and nobody saw its end."""


Verdict = Keep | Submit | Progress | Gone


def run_evidence(events: Sequence[dict[str, Any]], submission_id: str, complete: bool) -> RunEvidence:
    """From the run's events: only what this attempt wrote counts, not what an earlier one did."""
    failure, own = None, False
    for event in events:
        if event.get("event") == "started":
            own, failure = event.get("attempt") == submission_id, None
        elif own and event.get("event") == "failed":
            failure = (str(event.get("error")), str(event.get("message")))
    return RunEvidence(complete, failure)


def judge(attempt: AttemptRecord, seen: Seen, message: str, run: RunEvidence) -> Verdict:
    """The verdict over a live attempt."""
    if seen == "unreachable":
        return Keep(reachable=False)
    if seen in ("pending", "running"):
        return Progress(alive=seen == "running")
    if seen == "unknown":
        if attempt.state is AttemptState.PLANNED and attempt.leaving_why is None:
            return Submit()
        # Ray forgets a job that has not ended only with its head, and that takes the job along.
        return _ending(attempt, "the cluster knows it no longer: its head started anew", run, seen_to_end=False)
    return _ending(attempt, message, run, seen_to_end=True)


def _ending(attempt: AttemptRecord, message: str, run: RunEvidence, *, seen_to_end: bool) -> Gone:
    if run.complete:
        return Gone("succeeded", None, "", seen_to_end=seen_to_end)
    if attempt.leaving_why == "cancel":
        return Gone("cancelled", None, message, seen_to_end=seen_to_end)
    if attempt.leaving_why == "limit":
        return Gone("limit", Cause.user_code, "its time limit was reached", final=True, seen_to_end=seen_to_end)
    if run.failure is not None and run.failure[0] not in _CLUSTERS_FAULT:
        error, text = run.failure
        return Gone("failed", Cause.user_code, f"{error}: {text}", final=error in _NEVER_BETTER)
    if attempt.leaving_why == "preempt":
        return Gone("preempted", Cause.preempted, message, seen_to_end=seen_to_end)
    detail = f"{run.failure[0]}: {run.failure[1]}" if run.failure is not None else message
    return Gone("lost", Cause.infrastructure, detail, seen_to_end=seen_to_end)
