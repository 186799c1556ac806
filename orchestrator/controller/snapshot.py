"""From what the store and the cluster say to the queue's snapshot. Pure."""

from collections.abc import Sequence

from orchestrator.scheduling import Gang, Job, Node, Pending, Policy, Project, Snapshot
from orchestrator.store import JobRecord


def snapshot_of(
    now_ms: int, nodes: tuple[Node, ...], jobs: Sequence[JobRecord], projects: Sequence[Project], policy: Policy
) -> Snapshot:
    """Live attempts hold their places until they are confirmed to be gone, whatever their job is told to become."""
    gangs, pending = [], []
    for record in jobs:
        limit = record.limit_ms
        job = Job(record.id, record.project, record.demand, record.priority, record.submitted_ms, limit)
        attempt = record.attempt
        if attempt is not None and attempt.state.live:
            since_ms = attempt.alive_ms or attempt.planned_ms
            gangs.append(Gang(job, attempt.placement, since_ms, attempt.leaving_since_ms))
        elif record.state.waits:
            admitted = bool(record.reason) or attempt is not None
            pending.append(Pending(job, record.not_before_ms, record.claim, admitted, record.reason))
    return Snapshot(now_ms, nodes, tuple(gangs), tuple(pending), tuple(projects), policy)
