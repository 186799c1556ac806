"""Ranks and environments from where the members run."""

from cluster.gang import environments, rank_order
from cluster.member import Place


def places(*nodes):
    return [Place(node, f"10.0.0.{node}", pid) for pid, node in enumerate(nodes)]


def test_members_on_one_node_are_neighbours_and_bundle_0_is_rank_0():
    assert rank_order(places("2", "1", "2", "1")) == [0, 2, 1, 3]


def test_one_node_meets_on_the_loopback():
    first, second = environments(places("1", "1"), 4711)
    assert first == {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4711",
    }
    assert (second["RANK"], second["LOCAL_RANK"]) == ("1", "1")


def test_several_nodes_meet_at_rank_0s_node():
    environment = environments(places("2", "2", "1"), 4711)
    assert {one["MASTER_ADDR"] for one in environment} == {"10.0.0.2"}
    assert [one["LOCAL_RANK"] for one in environment] == ["0", "1", "0"]
    assert [one["LOCAL_WORLD_SIZE"] for one in environment] == ["2", "2", "1"]
