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
_REFUSED = "SpecError"

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
    refused: bool = False
    """The spec is wrong, which only the job could find out: it has to call the user's code for that."""


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


def judge(attempt: AttemptRecord, seen: Seen, message: str, run: RunEvidence, identity: str | None = None) -> Verdict:
    """The verdict over a live attempt.

    Args:
        identity: of the cluster that answers now; needed where it knows no such id. None: it does not tell.
    """
    if seen == "unreachable":
        return Keep(reachable=False)
    if seen in ("pending", "running"):
        return Progress(alive=seen == "running")
    if seen == "unknown":
        return _forgotten(attempt, run, identity)
    return _ending(attempt, message, run, seen_to_end=True)


def _forgotten(attempt: AttemptRecord, run: RunEvidence, identity: str | None) -> Verdict:
    """Ray answers, and knows no such id.

    It forgets a job that has not ended only with its head, and that takes the job along; from a head that goes on, only
    jobs that have ended can be deleted. Either way nothing runs any more, and it is not the job that failed.
    """
    if attempt.state is AttemptState.PLANNED:
        if attempt.leaving_why is None:
            return Submit()
        return _ending(attempt, "it was never submitted", run, seen_to_end=False)
    if identity is None:
        return Keep(reachable=False)
    if attempt.cluster_id is None:
        message = "the cluster knows it no longer"
    elif attempt.cluster_id != identity:
        message = f"the cluster's head started anew ({attempt.cluster_id} is now {identity})"
    else:
        message = "it was deleted from the cluster, whose head is still the same"
    return _ending(attempt, message, run, seen_to_end=False)


def _ending(attempt: AttemptRecord, message: str, run: RunEvidence, *, seen_to_end: bool) -> Gone:
    if run.complete:
        return Gone("succeeded", None, "", seen_to_end=seen_to_end)
    if attempt.leaving_why == "cancel":
        return Gone("cancelled", None, message, seen_to_end=seen_to_end)
    if attempt.leaving_why == "limit":
        return Gone("limit", Cause.user_code, "its time limit was reached", final=True, seen_to_end=seen_to_end)
    if run.failure is not None and run.failure[0] not in _CLUSTERS_FAULT:
        error, text = run.failure
        ending = {"final": error in _NEVER_BETTER, "refused": error == _REFUSED}
        return Gone("failed", Cause.user_code, f"{error}: {text}", **ending)
    if attempt.leaving_why == "preempt":
        return Gone("preempted", Cause.preempted, message, seen_to_end=seen_to_end)
    detail = f"{run.failure[0]}: {run.failure[1]}" if run.failure is not None else message
    return Gone("lost", Cause.infrastructure, detail, seen_to_end=seen_to_end)
