"""From what the store and the cluster say to the queue's snapshot. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.observe import Holding
from orchestrator.scheduling import Gang, Job, Node, Pending, Policy, Project, Snapshot, milli
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


def with_taken(
    nodes: tuple[Node, ...],
    holdings: Sequence[Holding],
    jobs: Sequence[JobRecord],
    ray_jobs: Mapping[str, str],
) -> tuple[Node, ...]:
    """The nodes with what is held there beside the places that live attempts are charged with.

    That is what others hold, and what a live attempt holds beyond its places: an elastic gang that grew, trials that
    Ray put elsewhere. An attempt that was confirmed to be gone holds nothing, whatever Ray is still clearing away.

    Args:
        ray_jobs: submission id -> Ray's id of its driver, of all attempts of which it is known.
    """
    own = {ray_job: submission_id for submission_id, ray_job in ray_jobs.items()}
    charged: dict[str, dict[str, Counter[str]]] = {}
    for job in jobs:
        if job.attempt is not None and job.attempt.state.live:
            places: dict[str, Counter[str]] = defaultdict(Counter)
            for node in job.attempt.placement:
                places[node].update(dict(job.demand.bundle))
            charged[job.attempt.submission_id] = places
    held: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    for holding in holdings:
        submission_id = own.get(holding.ray_job)
        if submission_id is None or submission_id in charged:
            held[holding.node, submission_id].update(milli(holding.amounts))
    taken: dict[str, Counter[str]] = defaultdict(Counter)
    for (node, submission_id), amounts in held.items():
        # Subtraction of counters keeps what is left over, and nothing below zero.
        taken[node] += amounts - charged[submission_id].get(node, Counter()) if submission_id else amounts
    return tuple(replace(node, taken=dict(taken[node.name])) for node in nodes)
