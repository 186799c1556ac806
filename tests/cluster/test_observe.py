"""What a dashboard says of nodes, and of who holds what there."""

import pytest

from cluster.observe import Dashboard, Holding
from jobs.errors import ClusterUnreachable
from tests.cluster.fake_head import FakeHead

NODE = {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}}


@pytest.fixture
def head():
    with FakeHead() as head:
        yield head


@pytest.fixture
def dashboard(head, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    return Dashboard(head.url, timeout_s=5.0)


def group(state, *bundles, job="01000000"):
    held = [{"node_id": node, "unit_resources": {"CPU": cpus}} for node, cpus in bundles]
    return {"creator_job_id": job, "state": state, "bundles": held}


def holder(state, cpus, node="a", group=None, **more):
    needs = {"CPU": cpus} if cpus else {}
    row = {"job_id": "02000000", "node_id": node, "placement_group_id": group, "required_resources": needs}
    return row | {"state": state} | more


def test_nodes_that_live_with_what_counts(head, dashboard):
    head.rows["nodes"] = [NODE | {"node_id": "a"}, NODE | {"node_id": "b", "state": "DEAD"}]
    assert dashboard.nodes() == {"a": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}}


def test_a_head_that_starts_anew_is_another_one(head, dashboard):
    before = dashboard.identity()
    head.session += 1
    assert dashboard.identity() != before


def test_who_holds_what(head, dashboard):
    head.rows |= {
        "placement_groups": [
            group("CREATED", ("a", 1.0), ("b", 2.0)),
            group("REMOVED", ("a", 1.0)),
            group("PENDING", (None, 8.0)),
            group("RESCHEDULING", ("a", 0.5), (None, 0.5), job="03000000"),
        ],
        "actors": [
            holder("ALIVE", 0.25),
            holder("ALIVE", 0),
            holder("ALIVE", 1.0, group="5f"),  # within its group, which holds it already
            holder("DEAD", 1.0),
        ],
        "tasks": [
            holder("RUNNING", 3.0, node="b", type="NORMAL_TASK"),
            holder("RUNNING", 3.0, node="b", type="ACTOR_TASK"),  # its actor holds it
            holder("FINISHED", 1.0, type="NORMAL_TASK"),
        ],
    }
    assert dashboard.holdings() == [
        Holding("01000000", "a", {"CPU": 1.0}),
        Holding("01000000", "b", {"CPU": 2.0}),
        Holding("03000000", "a", {"CPU": 0.5}),
        Holding("02000000", "a", {"CPU": 0.25}),
        Holding("02000000", "b", {"CPU": 3.0}),
    ]


def test_an_answer_that_is_not_understood_is_no_answer(head, dashboard):
    head.rows["actors"] = [{"state": "ALIVE"}]
    with pytest.raises(ClusterUnreachable, match="list of actors"):
        dashboard.holdings()


def test_silence_is_unreachable(head, dashboard):
    head.go_silent()
    dashboard = Dashboard(head.url, timeout_s=0.1)
    for call in (dashboard.nodes, dashboard.holdings, dashboard.identity):
        with pytest.raises(ClusterUnreachable):
            call()
