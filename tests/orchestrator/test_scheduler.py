"""The queue by example: order, gangs, backfill, quota, victims, claims, reasons."""

import doctest
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
from queue_checks import check, node

from orchestrator.scheduling import (
    Demand,
    DropClaim,
    Gang,
    Job,
    Pending,
    Policy,
    Preempt,
    Project,
    Quota,
    Snapshot,
    Start,
    Wait,
    apply,
    decide,
    refusal,
)
from orchestrator.scheduling.retry import Cause, GiveUp, Retry, after_failure, backoff_ms

NOW = 45_000_000
TWO = (node("a", CPU=4), node("b", CPU=4))
MODULES = ["admission", "lines", "placing", "quota", "reasons", "records", "retry"]


def job(name: str, demand: Demand, priority: int = 0, project: str = "p", at: int = 0, limit_ms: int | None = None):
    return Job(name, project, demand, priority, at, limit_ms)


def one(cpus: float) -> Demand:
    return Demand.of(1, CPU=cpus)


def starts(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    return {d.job: d.placement for d in check(snapshot) if isinstance(d, Start)}


def reasons(snapshot: Snapshot) -> dict[str, str]:
    return {d.job: d.reason for d in check(snapshot) if isinstance(d, Wait)}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_code(name: str):
    failed, _ = doctest.testmod(importlib.import_module(f"orchestrator.scheduling.{name}"))
    assert failed == 0


def test_examples_in_the_document():
    page = Path(__file__).parents[2] / "docs" / "scheduling.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert failed == 0
    assert tried > 20


def test_free_cpus_on_two_nodes_are_no_place_for_one_worker():
    busy = tuple(Gang(job(name, one(2)), (where,), 0) for name, where in (("1", "a"), ("2", "b")))
    assert starts(Snapshot(NOW, TWO, busy, (Pending(job("3", one(4))),))) == {}
    assert starts(Snapshot(NOW, TWO, busy, (Pending(job("3", Demand.of(2, CPU=2))),))) == {"3": ("a", "b")}


def test_what_others_hold_on_a_node_is_not_free():
    taken = (replace(TWO[0], taken={"CPU": 3000}), TWO[1])
    assert starts(Snapshot(NOW, taken, (), (Pending(job("1", Demand.of(2, CPU=2))),))) == {"1": ("b", "b")}


def test_a_job_without_gpus_stays_off_the_gpus():
    nodes = (node("a", CPU=8, GPU=4), node("b", CPU=4))
    waiting = (Pending(job("1", one(2))), Pending(job("2", Demand.of(2, CPU=1, GPU=1))))
    assert starts(Snapshot(NOW, nodes, (), waiting)) == {"1": ("b",), "2": ("a", "a")}


def test_priority_then_time_then_id():
    waiting = [
        Pending(job("c", one(4), at=1)),
        Pending(job("b", one(4), at=2)),
        Pending(job("a", one(4), at=2)),
        Pending(job("d", one(4), priority=1, at=3)),
    ]
    order = []
    snapshot = Snapshot(NOW, (node("n", CPU=4),), (), tuple(waiting))
    for _ in waiting:
        (name,) = starts(snapshot)
        order.append(name)
        snapshot = replace(snapshot, pending=tuple(p for p in snapshot.pending if p.job.id != name))
    assert order == ["d", "c", "a", "b"]


def test_shares_follow_the_weights():
    projects = (Project("x", weight=1), Project("y", weight=3))
    waiting = tuple(Pending(job(f"{p}{i}", one(1), project=p, at=i)) for p in "xy" for i in range(8))
    started = starts(Snapshot(NOW, TWO, (), waiting, projects))
    assert sorted(name[0] for name in started) == ["x"] * 2 + ["y"] * 6


def test_lending_limits_keep_a_floor_and_borrowing_limits_a_ceiling():
    lender = Project("x", Quota({"CPU": 4000}, lending_limit={"CPU": 1000}))
    waiting = tuple(Pending(job(f"{i}", one(1), project="y", at=i)) for i in range(8))
    for limit, most in (({"CPU": 0}, 4), (None, 5)):
        borrower = Project("y", Quota({"CPU": 4000}, borrowing_limit=limit))
        assert len(starts(Snapshot(NOW, TWO, (), waiting, (lender, borrower)))) == most


def test_quota_that_shrank_stops_starts_and_nothing_else():
    running = tuple(Gang(job(f"r{i}", one(2)), ("a",), 0) for i in range(2))
    shrunk = (Project("p", Quota({"CPU": 2000})),)
    decisions = decide(Snapshot(NOW, TWO, running, (Pending(job("w", one(1))),), shrunk))
    assert [type(d) for d in decisions] == [Wait]
    assert "1 CPU of quota: project p has 0 CPU left" in decisions[0].reason


def test_reasons_name_what_is_missing_when_it_starts_and_who_is_ahead():
    running = (Gang(job("r", Demand.of(2, CPU=2), priority=10, limit_ms=600_000), ("a", "b"), NOW),)
    waiting = (Pending(job("17", Demand.of(2, CPU=4), 10)), Pending(job("18", Demand.of(2, CPU=4), 1)))
    assert reasons(Snapshot(NOW, TWO, running, waiting)) == {
        "17": "waiting for 2 × 4 CPU: room for 0 now; reserved at 12:40",
        "18": "waiting for 2 × 4 CPU: room for 0 now; behind job 17 (priority 10)",
    }


def test_two_reservations_protect_two_jobs():
    running = (Gang(job("r", Demand.of(2, CPU=3), 9, limit_ms=600_000), ("a", "b"), NOW),)
    waiting = (Pending(job("1", one(4), 8)), Pending(job("2", one(4), 7)), Pending(job("3", one(1))))
    assert starts(Snapshot(NOW, TWO, running, waiting)) == {"3": ("b",)}
    assert starts(Snapshot(NOW, TWO, running, waiting, policy=Policy(reservations=2))) == {}


def test_a_large_gang_is_not_overtaken_for_ever_by_jobs_without_limits():
    running = (Gang(job("r", one(1), 9), ("a",), NOW),)
    waiting = (Pending(job("big", Demand.of(2, CPU=4), 5)), Pending(job("small", one(1))))
    told = reasons(Snapshot(NOW, TWO, running, waiting))
    assert told["big"].endswith("reserved for when jobs without a time limit have ended")
    assert "promised" in told["small"]


def test_the_newest_of_the_lowest_priority_leaves_and_no_more_than_needed():
    running = tuple(
        Gang(job(name, one(2), priority), (where,), started)
        for name, priority, where, started in (("1", 1, "a", 5), ("2", 0, "a", 1), ("3", 0, "b", 2), ("4", 0, "b", 3))
    )
    evicted = [d for d in check(Snapshot(NOW, TWO, running, (Pending(job("w", one(2), 5)),))) if isinstance(d, Preempt)]
    assert [d.victims for d in evicted] == [("4",)]
    evicted = [d for d in check(Snapshot(NOW, TWO, running, (Pending(job("w", one(4), 1)),))) if isinstance(d, Preempt)]
    assert [sorted(d.victims) for d in evicted] == [["3", "4"]]


def test_who_turns_out_not_to_be_needed_stays():
    running = (
        Gang(job("small", one(1)), ("a",), 9),
        Gang(job("high", one(3), 9), ("a",), 0),
        Gang(job("large", one(4)), ("b",), 1),
    )
    evicted = [d for d in check(Snapshot(NOW, TWO, running, (Pending(job("w", one(4), 5)),))) if isinstance(d, Preempt)]
    assert [d.victims for d in evicted] == [("large",)]


def test_lent_quota_is_not_lent_again_while_its_owner_waits():
    owner = {"quota": Quota({"CPU": 4000}), "reclaim": "never"}
    projects = tuple(Project(name, **owner) for name in "xyz")
    borrowed = tuple(
        Gang(job(f"r{i}", one(1), project="x", limit_ms=600_000), ("abc"[i // 4],), NOW) for i in range(10)
    )
    short = Pending(job("short", one(1), project="x", limit_ms=1000))
    own = tuple(Pending(job(name, one(4), priority, project=name)) for name, priority in (("z", 5), ("y", 0)))
    nodes = (*TWO, node("c", CPU=4))
    assert starts(Snapshot(NOW, nodes, borrowed, (short, *own), projects)) == {}
    assert starts(Snapshot(NOW, nodes, borrowed, (short,), projects)) == {"short": ("c",)}


def test_the_places_of_victims_are_kept_for_whom_they_left():
    running = (Gang(job("v", one(4)), ("a",), 0), Gang(job("r", one(4), 9), ("b",), 0))
    snapshot = Snapshot(NOW, TWO, running, (Pending(job("w", one(4), 5)),))
    snapshot = apply(snapshot, check(snapshot))
    # The victim is gone, it waits again, and somebody with a higher priority has come.
    later = replace(snapshot, gangs=snapshot.gangs[1:], now_ms=NOW + 1000)
    rivals = (Pending(job("v", one(4))), Pending(job("z", one(4), 7, project="q")))
    assert starts(replace(later, pending=later.pending + rivals)) == {"w": ("a",)}


def test_a_claim_is_dropped_when_its_node_is_gone_or_a_victim_stays():
    running = (Gang(job("v", one(4)), ("a",), 0), Gang(job("r", one(4), 9), ("b",), 0))
    snapshot = Snapshot(NOW, TWO, running, (Pending(job("w", one(4), 5)),))
    claimed = apply(snapshot, check(snapshot))
    assert any(isinstance(d, DropClaim) for d in check(replace(claimed, nodes=TWO[1:])))
    assert any(isinstance(d, DropClaim) for d in check(replace(claimed, now_ms=NOW + claimed.policy.grace_ms)))
    assert check(claimed) == []


def test_nobody_is_evicted_for_what_leaves_anyway():
    leaving = Gang(job("v", one(4)), ("a",), 0, leaving_since_ms=NOW - 1)
    running = (leaving, Gang(job("r", one(4)), ("b",), 0))
    decisions = check(Snapshot(NOW, TWO, running, (Pending(job("w", one(4), 5)),)))
    assert [type(d) for d in decisions] == [Wait]


def test_an_accepted_job_waits_for_lost_nodes_and_growth_is_counted():
    big = job("1", Demand.of(2, CPU=4))
    assert refusal(big, Snapshot(NOW, TWO[:1])) is not None
    assert refusal(big, Snapshot(NOW, TWO[:1], growth=TWO[1:])) is None
    assert "at present" in reasons(Snapshot(NOW, TWO[:1], (), (Pending(big),)))["1"]
    limited = Snapshot(NOW, TWO, projects=(Project("p", Quota({"CPU": 6000})),))
    assert refusal(big, limited) == ("8 CPU can never start here: project p may use at most 6 CPU, borrowing included")
    assert "no node has any TPU" in str(refusal(job("2", Demand.of(1, TPU=1)), Snapshot(NOW, TWO)))


def test_wrong_records_are_refused():
    for wrong in (
        lambda: Demand(0, (("CPU", 1),)),
        lambda: Demand(1, (("CPU", 0),)),
        lambda: Demand(1, (("GPU", 1), ("CPU", 1))),
        lambda: Gang(job("1", Demand.of(2, CPU=1)), ("a",), 0),
        lambda: Project("p", weight=0),
        lambda: Policy(reservations=0),
        lambda: Snapshot(0, TWO, (), (Pending(job("1", one(1))),) * 2),
        lambda: Snapshot(0, TWO * 2),
    ):
        with pytest.raises(ValueError, match=r".{10}"):
            wrong()


def test_backoff_doubles_up_to_an_hour_and_only_user_code_counts():
    waits = [backoff_ms("7", n) for n in range(1, 9)]
    for number, wait in enumerate(waits):
        assert min(3_600_000, 60_000 * 2**number) <= wait <= min(3_600_000, 66_000 * 2**number)
    assert backoff_ms("7", 1) != backoff_ms("8", 1)
    lost = [Cause.infrastructure] * 9
    assert after_failure("7", lost, 0, 5) == Retry(5 + 3_600_000)
    assert after_failure("7", [*lost, Cause.preempted], 0, 5) == Retry(5)
    assert isinstance(after_failure("7", [Cause.user_code] * 2, 1, 5), GiveUp)
    assert isinstance(after_failure("7", [Cause.user_code], 1, 5), Retry)


def test_who_borrows_evicts_no_gang_of_its_project_that_would_come_before_it_again():
    """The order prefers jobs within nominal: evicted by a borrower, one would be started again first, without end."""
    owners = (Project("x", Quota({"CPU": 4000})), Project("y", Quota({"CPU": 4000})))
    borrower = job("high", Demand.of(2, CPU=4), 1, "y")
    within = job("low", Demand.of(2, CPU=2), 0, "y", at=1, limit_ms=600_000)
    snapshot = Snapshot(NOW, TWO, (), (Pending(borrower), Pending(within)), owners, Policy(2, 20_000))
    decisions = check(snapshot)
    assert [d.job for d in decisions if isinstance(d, Start)] == ["low"]
    assert not [d for d in decisions if isinstance(d, Preempt)]
    # Both within nominal, or both beyond: priority decides.
    same = replace(snapshot, pending=(Pending(job("high", one(4), 1, "y")),), gangs=(Gang(within, ("a", "a"), NOW),))
    other = Gang(job("x", one(4), project="x"), ("b",), NOW)
    assert [d.victims for d in check(replace(same, gangs=(*same.gangs, other))) if isinstance(d, Preempt)] == [("low",)]
