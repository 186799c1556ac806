"""The rules of the queue once more, as plain as possible: what the decisions are held to."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

from orchestrator.scheduling import (
    Decision,
    Demand,
    Gang,
    Job,
    Node,
    Pending,
    Preempt,
    Project,
    Refuse,
    Snapshot,
    Start,
    Wait,
    apply,
    decide,
)

UNLIMITED = 10**18
NEVER = 1 << 61


def free(snapshot: Snapshot, without: frozenset[str] = frozenset()) -> dict[str, Counter[str]]:
    """By node: total less what others took and the gangs hold, but for those in `without`."""
    left = {node.name: Counter(node.total) for node in snapshot.nodes}
    for node in snapshot.nodes:
        left[node.name].subtract(node.taken)
    for gang in snapshot.gangs:
        if gang.job.id not in without:
            charge(left, gang.job.demand, gang.placement)
    return left


def charge(left: dict[str, Counter[str]], demand: Demand, placement: tuple[str, ...]) -> None:
    for name in placement:
        if name in left:
            left[name].subtract(dict(demand.bundle))


def room(left: dict[str, Counter[str]], demand: Demand) -> int:
    """Bundles that fit, counted one by one."""
    count = 0
    for has in left.values():
        has = Counter(has)
        while all(has[name] >= amount for name, amount in demand.bundle):
            has.subtract(dict(demand.bundle))
            count += 1
    return count


def usage(snapshot: Snapshot, without: frozenset[str] = frozenset()) -> dict[str, Counter[str]]:
    used: dict[str, Counter[str]] = {}
    for gang in snapshot.gangs:
        if gang.job.id not in without:
            used.setdefault(gang.job.project, Counter()).update(gang.job.demand.total)
    return used


def project_of(snapshot: Snapshot, name: str) -> Project:
    return next((project for project in snapshot.projects if project.name == name), Project(name))


def available(snapshot: Snapshot, project: Project, used: dict[str, Counter[str]], resource: str) -> int:
    if project.quota is None or resource not in project.quota.nominal:
        return UNLIMITED

    def parts(one: Project) -> tuple[int, int, int]:
        assert one.quota is not None
        nominal = one.quota.nominal[resource]
        lending = UNLIMITED if one.quota.lending_limit is None else one.quota.lending_limit.get(resource, UNLIMITED)
        return nominal, max(0, nominal - lending), used.get(one.name, Counter())[resource]

    pool_left = 0
    for one in snapshot.projects:
        if one.pool == project.pool and one.quota is not None and resource in one.quota.nominal:
            nominal, local, use = parts(one)
            pool_left += nominal - local - max(0, use - local)
    nominal, local, use = parts(project)
    limit = project.quota.borrowing_limit
    borrow = UNLIMITED if limit is None else limit.get(resource, UNLIMITED)
    return max(0, local - use) + min(pool_left, nominal - local - max(0, use - local) + borrow)


def quota_allows(snapshot: Snapshot, job: Job, used: dict[str, Counter[str]]) -> bool:
    project = project_of(snapshot, job.project)
    return all(need <= available(snapshot, project, used, name) for name, need in job.demand.total.items())


def within_nominal(snapshot: Snapshot, job: Job, used: dict[str, Counter[str]]) -> bool:
    quota = project_of(snapshot, job.project).quota
    if quota is None:
        return False
    own = used.get(job.project, Counter())
    return all(own[n] + need <= quota.nominal[n] for n, need in job.demand.total.items() if n in quota.nominal)


def borrows(snapshot: Snapshot, name: str, used: dict[str, Counter[str]], job: Job) -> bool:
    quota = project_of(snapshot, name).quota
    own = used.get(name, Counter())
    return any(own[n] > (quota.nominal.get(n, UNLIMITED) if quota else 0) for n, _ in job.demand.bundle)


def leaving(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(gang.job.id for gang in snapshot.gangs if gang.leaving_since_ms is not None)


def overdue(snapshot: Snapshot) -> frozenset[str]:
    """Who should be gone already: nobody relies on them."""
    grace = max(1, snapshot.policy.grace_ms)
    late = set()
    for gang in snapshot.gangs:
        if gang.leaving_since_ms is not None:
            if gang.leaving_since_ms + grace <= snapshot.now_ms:
                late.add(gang.job.id)
        elif gang.job.limit_ms is not None and gang.started_ms + gang.job.limit_ms + grace <= snapshot.now_ms:
            late.add(gang.job.id)
    return frozenset(late)


def gone_soon(snapshot: Snapshot) -> frozenset[str]:
    """Who has left or ended within the time that victims take."""
    soon = snapshot.now_ms + max(1, snapshot.policy.grace_ms)
    ends = {g.job.id: g.started_ms + g.job.limit_ms for g in snapshot.gangs if g.job.limit_ms is not None}
    return (leaving(snapshot) | {name for name, end in ends.items() if end <= soon}) - overdue(snapshot)


def legal_victims(snapshot: Snapshot, job: Job, victims: frozenset[str]) -> bool:
    """Whether there is an order in which each may be evicted; the newest of the lowest priority first is one."""
    project = project_of(snapshot, job.project)
    by_name = {gang.job.id: gang for gang in snapshot.gangs}
    away = leaving(snapshot)
    if victims & away:
        return False
    reclaims = within_nominal(snapshot, job, usage(snapshot, away))
    rest = usage(snapshot, away | victims)
    owns = within_nominal(snapshot, job, rest)
    for name in victims:
        other = by_name[name].job
        if within_nominal(snapshot, other, rest) and (not owns or other.priority >= job.priority):
            return False  # It would come before the job again.
    for order in itertools.islice(itertools.permutations(sorted(victims)), 720):
        gone = away
        for name in order:
            other = by_name[name].job
            lower = other.priority < job.priority
            if other.project == job.project:
                legal = lower and project.preempt_within == "lower_priority"
            else:
                legal = (
                    reclaims
                    and project_of(snapshot, other.project).pool == project.pool
                    and (project.reclaim == "any" or (project.reclaim == "lower_priority" and lower))
                    and borrows(snapshot, other.project, usage(snapshot, gone), job)
                )
            if not legal:
                break
            gone = gone | {name}
        else:
            return True
    return False


def claims(snapshot: Snapshot, but: str = "") -> list[Pending]:
    return [one for one in snapshot.pending if one.claim is not None and one.job.id != but]


def fits_without(snapshot: Snapshot, job: Job, gone: frozenset[str]) -> bool:
    """Whether the gang fits when these are gone and the claims of others are kept."""
    left, used = free(snapshot, gone), usage(snapshot, gone)
    for one in claims(snapshot, but=job.id):
        assert one.claim is not None
        charge(left, one.job.demand, one.claim)
        used.setdefault(one.job.project, Counter()).update(one.job.demand.total)
    return room(left, job.demand) >= job.demand.workers and quota_allows(snapshot, job, used)


def fits_now(snapshot: Snapshot, job: Job) -> bool:
    return fits_without(snapshot, job, frozenset())


def check(before: Snapshot, seed: int = 0) -> list[Decision]:
    """Decides, and holds what was decided to properties 1, 2, 3, 5, 7, 9, 10, 11 and 13."""
    decisions = decide(before)
    state = before
    pending = {one.job.id: one for one in before.pending}
    for decision in decisions:
        match decision:
            case Start(name, placement):
                _check_start(state, pending[name], placement)
            case Preempt(name, victims, placement):
                _check_preempt(state, pending[name].job, frozenset(victims), placement)
        state = apply(state, [decision])
    assert decide(state) == [], "a second call decides something"
    _check_order_of_input(before, decisions, seed)
    _check_waiting(state, [pending[d.job].job for d in decisions if isinstance(d, Start)])
    return decisions


def _check_start(state: Snapshot, one: Pending, placement: tuple[str, ...]) -> None:
    job = one.job
    assert len(placement) == job.demand.workers, "a gang starts whole"
    assert one.not_before_ms <= state.now_ms, "not before its backoff is over"
    left = free(state)
    assert set(placement) <= left.keys()
    charge(left, job.demand, placement)
    for name in placement:
        assert all(left[name][resource] >= 0 for resource, _ in job.demand.bundle), f"{name} is oversubscribed"
    assert quota_allows(state, job, usage(state)), f"job {job.id} goes beyond the quota"


def _check_preempt(state: Snapshot, job: Job, victims: frozenset[str], placement: tuple[str, ...]) -> None:
    assert victims, "someone must go"
    assert legal_victims(state, job, victims), f"{sorted(victims)} may not be evicted for {job.id}"
    soon = gone_soon(state)
    assert fits_without(state, job, soon | victims), "the preemptor does not fit"
    left = free(state, soon | victims)
    for one in claims(state, but=job.id):
        charge(left, one.job.demand, one.claim or ())
    charge(left, job.demand, placement)
    assert all(left[name][resource] >= 0 for name in placement for resource, _ in job.demand.bundle)
    if len(state.pending) == 1:
        for victim in victims:
            assert not fits_without(state, job, soon | (victims - {victim})), f"{victim} need not go"


def _check_order_of_input(before: Snapshot, decisions: list[Decision], seed: int) -> None:
    mixed = random.Random(seed)

    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(mixed.sample(items, len(items)))

    again = replace(
        before,
        nodes=shuffled(before.nodes),
        gangs=shuffled(before.gangs),
        pending=shuffled(before.pending),
        projects=shuffled(before.projects),
    )
    assert decide(again) == decisions, "the order of the input matters"
    largest = max((amount for node in before.nodes for amount in node.total.values()), default=0)
    project = before.projects[0].name if before.projects else "nobody"
    giant = Job("giant", project, Demand(1, (("CPU", 2 * largest + 1),)), 10**6, 0)
    more = decide(replace(before, pending=(*before.pending, Pending(giant, admitted=False))))
    assert [d for d in more if _about(d) != "giant"] == decisions, "an infeasible job changes something"
    assert [type(d) for d in more if _about(d) == "giant"] == [Refuse]


def _about(decision: Decision) -> str:
    return decision.for_job if isinstance(decision, Preempt) else decision.job


def _check_waiting(state: Snapshot, started: list[Job]) -> None:
    untold = replace(state, pending=tuple(replace(one, reason="") for one in state.pending))
    waits = {wait.job: wait for wait in decide(untold) if isinstance(wait, Wait)}
    assert waits.keys() == {one.job.id for one in state.pending}, "every pending job says why"
    assert all(wait.reason for wait in waits.values())
    ready = [one.job for one in state.pending if one.claim is None and one.not_before_ms <= state.now_ms]
    reserved = {job.id: waits[job.id].reserved_ms for job in ready if waits[job.id].reserved_ms is not None}
    _check_reserved_starts(state, ready, reserved)
    used = usage(state)
    lent_out = {
        project_of(state, job.project).pool
        for job in ready
        if within_nominal(state, job, usage(state, leaving(state))) and not quota_allows(state, job, used)
    }
    for job in ready:
        ends = NEVER + 1 if job.limit_ms is None else state.now_ms + job.limit_ms
        if any(start < ends for start in reserved.values()) or project_of(state, job.project).pool in lent_out:
            continue
        assert not fits_now(state, job), f"job {job.id} could start"
    if reserved or claims(state):
        return
    for job in ready:
        for other in started:
            if other.priority < job.priority and project_of(state, job.project).pool not in lent_out:
                undone = replace(state, gangs=tuple(g for g in state.gangs if g.job.id != other.id))
                alike = within_nominal(undone, job, usage(undone)) >= within_nominal(undone, other, usage(undone))
                assert not (alike and fits_now(undone, job)), f"job {other.id} took the place of job {job.id}"


def _check_reserved_starts(state: Snapshot, ready: list[Job], reserved: dict[str, int | None]) -> None:
    """When all that has a time limit keeps it, each reserved job starts then, on what the others left of it."""
    for job in ready:
        start_ms = reserved.get(job.id)
        if start_ms is None or start_ms >= NEVER or claims(state):
            continue
        grace_ms = max(1, state.policy.grace_ms)
        ahead = [other for other in ready if other.id in reserved and (reserved[other.id] or 0) <= start_ms]
        if ahead != [job]:
            continue  # then both hold their places, which only the ledger knows
        stay = []
        for gang in state.gangs:
            end = NEVER if gang.job.limit_ms is None else gang.started_ms + gang.job.limit_ms
            if gang.leaving_since_ms is not None:
                left_at = gang.leaving_since_ms + grace_ms
                end = NEVER if left_at <= state.now_ms else min(end, left_at) if end > state.now_ms else left_at
            elif end + grace_ms <= state.now_ms:
                end = NEVER
            if max(end, state.now_ms + 1) > start_ms:
                stay.append(gang)
        then = replace(state, now_ms=start_ms, gangs=tuple(stay))
        assert fits_now(then, job), f"job {job.id} was promised {start_ms} and does not fit"


def settle(snapshot: Snapshot) -> tuple[Snapshot, list[tuple[str, str]]]:
    """Decides until nothing is decided, victims leaving at once. Gives who evicted whom, and ends: no ping-pong (6)."""
    evictions: list[tuple[str, str]] = []
    for _ in range(2 * (len(snapshot.pending) + len(snapshot.gangs)) + 2):
        decisions = check(snapshot)
        snapshot = apply(snapshot, decisions)
        evictions += [(d.for_job, victim) for d in decisions if isinstance(d, Preempt) for victim in d.victims]
        away = leaving(snapshot)
        if not away and not decisions:
            return snapshot, evictions
        stay: list[Gang] = []
        back: list[Pending] = []
        for gang in snapshot.gangs:
            if gang.job.id in away:
                back.append(Pending(gang.job))
            else:
                stay.append(gang)
        snapshot = replace(snapshot, gangs=tuple(stay), pending=(*snapshot.pending, *back))
    raise AssertionError(f"never settles: {evictions}")


def node(name: str, **amounts: float) -> Node:
    return Node(name, {resource: round(1000 * amount) for resource, amount in amounts.items()})
