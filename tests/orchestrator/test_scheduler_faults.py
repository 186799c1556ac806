"""The queue in a control plane that fails: whatever happens, no rule is broken, and in the end all jobs are done."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from queue_checks import fits_without, node
from queue_world import DONE, Cluster, Controller, Crash, Row, Stale, Store

from orchestrator.scheduling import Demand, Job, Pending, Policy, Project, Quota, Snapshot

QUOTAS = [
    (Quota({"CPU": 4000}), Quota({"CPU": 4000}), Quota({"CPU": 2000})),
    (Quota({"CPU": 6000}, {"CPU": 2000}), Quota({"CPU": 4000}, None, {"CPU": 1000}), None),
    (None, None, None),
]
CLUSTERS = [
    (node("a", CPU=4), node("b", CPU=4), node("c", CPU=2)),
    (node("a", CPU=8, GPU=2), node("b", CPU=2)),
]


class Faults(RuleBasedStateMachine):
    """Rules are what can happen; after each of them the invariants hold; at the end the world is left in peace."""

    @initialize(
        nodes=st.sampled_from(CLUSTERS),
        quotas=st.sampled_from(QUOTAS),
        reservations=st.integers(1, 2),
        reclaim=st.sampled_from(["any", "any", "lower_priority", "never"]),
    )
    def begin(self, nodes, quotas, reservations, reclaim):
        self.projects = tuple(Project(name, quota, reclaim=reclaim) for name, quota in zip("xyz", quotas, strict=True))
        self.store, self.cluster = Store(), Cluster(nodes)
        self.policy = Policy(reservations, grace_ms=20_000)
        self.submitted = 0
        self.elect()

    def elect(self) -> None:
        self.store.epoch += 1
        self.leader = Controller(self.store, self.cluster, self.projects, self.policy, self.store.epoch)

    @rule(
        project=st.sampled_from("xyz"),
        workers=st.integers(1, 3),
        cpus=st.integers(1, 4),
        priority=st.integers(-1, 2),
        limit_s=st.sampled_from([None, 10, 60, 600]),
        spent=st.sampled_from([0.3, 1.0]),
    )
    def submit(self, project, workers, cpus, priority, limit_s, spent):
        self.submitted += 1
        limit_ms = limit_s and 1000 * limit_s
        job = Job(
            f"{self.submitted:03}", project, Demand.of(workers, CPU=cpus), priority, self.store.clock_ms, limit_ms
        )
        row = Row(job, int(spent * (limit_ms or 120_000)), pending=Pending(job, admitted=False))
        self.store.rows[job.id] = row

    @rule(seconds=st.sampled_from([1, 5, 10, 30, 60, 300]))
    def time_passes(self, seconds):
        self.store.clock_ms += 1000 * seconds
        self.cluster.advance(1000 * seconds)

    @rule()
    def tick(self):
        self.leader.tick()

    @rule(steps=st.integers(0, 6))
    def controller_crashes(self, steps):
        """At any step; another one takes over with the next epoch."""
        self.leader.steps_left = steps
        with contextlib.suppress(Crash):
            self.leader.tick()
        self.elect()
        self.leader.tick()

    @rule(count=st.integers(1, 3))
    def replies_are_lost(self, count):
        self.cluster.lose_replies = count
        self.leader.tick()
        self.cluster.lose_replies = 0

    @rule()
    def head_restarts(self):
        self.cluster.restart_head()

    @rule()
    def store_fails_over(self):
        """What was committed is there; who leads must be found out anew."""
        self.elect()

    @rule()
    def stale_leader_goes_on(self):
        """It neither writes nor submits."""
        old = self.leader
        self.elect()
        rows, running = repr(self.store.rows), sorted(self.cluster.running)
        with contextlib.suppress(Stale):
            old.tick()
        assert (repr(self.store.rows), sorted(self.cluster.running)) == (rows, running)

    @rule(seconds=st.sampled_from([-3600, -30, 30, 3600, 86_400]))
    def clock_jumps(self, seconds):
        self.store.clock_ms += 1000 * seconds

    @rule(pick=st.integers(0, 50))
    def cancel(self, pick):
        open_rows = [row for row in self.store.rows.values() if row.state != DONE]
        if open_rows:
            open_rows[pick % len(open_rows)].cancelled = True

    @invariant()
    def nothing_is_oversubscribed(self):
        self.cluster.check()

    @invariant()
    def one_live_attempt_a_job(self):
        live = [one.job.id for one in self.cluster.running.values()]
        assert len(live) == len(set(live))

    def teardown(self):
        if not hasattr(self, "store"):
            return
        # Arrivals are over and nothing fails any more: every feasible job starts and ends (4, 8, 12).
        for _ in range(60 + 12 * len(self.store.rows)):
            if all(row.state == DONE for row in self.store.rows.values()):
                break
            self.leader.tick()
            self.time_passes(60 if any(row.attempt for row in self.store.rows.values()) else 1800)
        left = {name: row.pending for name, row in self.store.rows.items() if row.state != DONE}
        assert not left, f"these never ended: {left}"
        for row in self.store.rows.values():
            idle = Snapshot(0, self.cluster.nodes, (), (), self.projects)
            possible = fits_without(idle, replace(row.job), frozenset())
            assert row.outcome in (("succeeded", "cancelled") if possible else ("refused", "cancelled")), row


def test_no_fault_breaks_a_rule():
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_fault_breaks_a_rule_at_length():
    run_state_machine_as_test(
        Faults,
        settings=settings(
            max_examples=2000, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
