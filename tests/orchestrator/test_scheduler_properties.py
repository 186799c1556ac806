"""The queue on small random clusters, against the plain rules of `queue_checks` and against brute force."""

import itertools
from dataclasses import replace

import pytest
import queue_checks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.scheduling import (
    Demand,
    Gang,
    Job,
    Node,
    Pending,
    Policy,
    Preempt,
    Project,
    Quota,
    Snapshot,
    Start,
    decide,
)

NOW_MS = 10_000_000
cpus = st.integers(1, 4)


@st.composite
def jobs(draw: st.DrawFn, name: str, projects: tuple[str, ...]) -> Job:
    amounts = {"CPU": draw(cpus)}
    if draw(st.integers(0, 3)) == 0:
        amounts["GPU"] = 1
    return Job(
        name,
        draw(st.sampled_from(projects)),
        Demand.of(draw(st.integers(1, 3)), **amounts),
        draw(st.integers(-1, 2)),
        draw(st.integers(0, 3)),
        draw(st.sampled_from([None, 20_000, 60_000, 600_000])),
    )


@st.composite
def quotas(draw: st.DrawFn) -> Quota | None:
    if draw(st.integers(0, 4)) == 0:
        return None
    limits = st.one_of(st.none(), st.integers(0, 6).map(lambda n: {"CPU": 1000 * n}))
    return Quota({"CPU": 1000 * draw(st.integers(0, 8))}, draw(limits), draw(limits))


@st.composite
def snapshots(draw: st.DrawFn, max_pending: int = 6) -> Snapshot:
    nodes = []
    for index in range(draw(st.integers(1, 3))):
        total = {"CPU": 1000 * draw(st.integers(1, 6))} | ({"GPU": 2000} if draw(st.booleans()) else {})
        nodes.append(Node(f"n{index}", total, {"CPU": 1000 * draw(st.integers(0, 1))}))
    names = ("a", "b", "c")[: draw(st.integers(1, 3))]
    projects = tuple(
        Project(
            name,
            draw(quotas()),
            draw(st.sampled_from(["p", "p", "q"])),
            draw(st.integers(1, 2)),
            draw(st.sampled_from(["lower_priority", "lower_priority", "never"])),
            draw(st.sampled_from(["any", "any", "lower_priority", "never"])),
        )
        for name in names
    )
    policy = Policy(draw(st.integers(1, 2)), draw(st.sampled_from([0, 30_000])))
    # What runs was put there by the queue itself, earlier and for other reasons: any legal state can be met.
    empty = Snapshot(NOW_MS, tuple(nodes), (), (), projects, policy)
    gangs: list[Gang] = []
    for index in range(draw(st.integers(0, 5))):
        job = draw(jobs(f"r{index}", names))
        left = queue_checks.free(replace(empty, gangs=tuple(gangs)))
        placement: list[str] = []
        for _ in range(job.demand.workers):
            fitting = [n for n in left if all(left[n][name] >= amount for name, amount in job.demand.bundle)]
            if not fitting:
                break
            placement.append(draw(st.sampled_from(fitting)))
            left[placement[-1]].subtract(dict(job.demand.bundle))
        if len(placement) < job.demand.workers:
            continue
        since = draw(st.sampled_from([None, None, None, NOW_MS - 10_000, NOW_MS - 100_000]))
        gangs.append(Gang(job, tuple(placement), NOW_MS - 1000 * draw(st.integers(0, 100)), since))
    pending = [
        Pending(draw(jobs(f"w{index}", names)), draw(st.sampled_from([0, 0, 0, NOW_MS + 5000])))
        for index in range(draw(st.integers(0, max_pending)))
    ]
    return replace(empty, gangs=tuple(gangs), pending=tuple(pending))


few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
many = settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))


def check_one_decision(snapshot: Snapshot, seed: int) -> None:
    queue_checks.check(snapshot, seed)


def check_settles(snapshot: Snapshot) -> None:
    _, evictions = queue_checks.settle(snapshot)
    assert not {(victim, winner) for winner, victim in evictions} & set(evictions), "they evicted each other"


def check_against_brute_force(snapshot: Snapshot) -> None:
    """One job alone: it starts exactly if it fits; victims are found only where some set would do, and are minimal."""
    job = snapshot.pending[0].job
    decisions = decide(snapshot)
    start = next((d for d in decisions if isinstance(d, Start)), None)
    feasible = queue_checks.fits_without(replace(snapshot, gangs=()), job, frozenset())
    assert (start is not None) == (feasible and queue_checks.fits_now(snapshot, job))
    reliable = queue_checks.gone_soon(snapshot)
    sets = [
        frozenset(victims)
        for count in range(1, len(snapshot.gangs) + 1)
        for victims in itertools.combinations([gang.job.id for gang in snapshot.gangs], count)
        if queue_checks.fits_without(snapshot, job, reliable | frozenset(victims))
        and queue_checks.legal_victims(snapshot, job, frozenset(victims))
    ]
    preempt = next((d for d in decisions if isinstance(d, Preempt)), None)
    if start or queue_checks.fits_without(snapshot, job, reliable):
        assert preempt is None, "nobody had to go"
    elif preempt:
        chosen = frozenset(preempt.victims)
        assert chosen in sets
        assert not any(other < chosen for other in sets), "a smaller part would do"
    elif len(snapshot.gangs) <= 2:
        # Of more, those that a borrower still owes may be the wrong ones: a search in an order, not through all sets.
        assert not sets, f"{sets} would do"


@st.composite
def one_job(draw: st.DrawFn) -> Snapshot:
    snapshot = draw(snapshots(max_pending=0))
    job = draw(jobs("w", tuple(project.name for project in snapshot.projects)))
    return replace(snapshot, pending=(Pending(job),))


@few
@given(snapshots(), st.integers(0, 5))
def test_what_is_decided_keeps_the_rules(snapshot: Snapshot, seed: int):
    check_one_decision(snapshot, seed)


@few
@given(snapshots())
def test_evictions_come_to_an_end(snapshot: Snapshot):
    check_settles(snapshot)


@few
@given(one_job())
def test_gang_fit_and_victims_against_brute_force(snapshot: Snapshot):
    check_against_brute_force(snapshot)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@many
@given(snapshots(), st.integers(0, 5))
def test_what_is_decided_keeps_the_rules_at_length(snapshot: Snapshot, seed: int):
    check_one_decision(snapshot, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@many
@given(snapshots())
def test_evictions_come_to_an_end_at_length(snapshot: Snapshot):
    check_settles(snapshot)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@many
@given(one_job())
def test_gang_fit_and_victims_against_brute_force_at_length(snapshot: Snapshot):
    check_against_brute_force(snapshot)
