"""Which gangs fit where."""

import pytest

from cluster import placement
from cluster.placement import bundles, capacity, check_fits
from jobs.errors import SpecError


def test_a_bundle_for_each_worker():
    assert bundles(3, 2, 0) == [{"CPU": 2}] * 3


def test_accelerators_are_only_asked_for_when_wanted():
    assert bundles(1, 2, 1) == [{"CPU": 2, "GPU": 1}]


def test_bundles_are_not_one_shared_dict():
    first, second = bundles(2, 1, 0)
    first["CPU"] = 9
    assert second == {"CPU": 1}


@pytest.mark.parametrize("demand", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_a_gang_of_nothing_is_refused(demand):
    with pytest.raises(ValueError, match="worker"):
        bundles(*demand)


@pytest.mark.parametrize(
    ("bundle", "nodes", "most"),
    [
        ({"CPU": 2}, [{"CPU": 3}, {"CPU": 3}], 2),  # six CPUs in all, but a worker does not span nodes
        ({"CPU": 1, "GPU": 1}, [{"CPU": 8, "GPU": 2}, {"CPU": 8}], 2),
        ({"CPU": 0.1}, [{"CPU": 0.3}], 3),  # 0.3 / 0.1 is just below 3 in floating point
        ({"CPU": 1}, [], 0),
    ],
)
def test_capacity_counts_whole_workers_on_single_nodes(bundle, nodes, most):
    assert capacity(bundle, nodes) == most


def test_what_fits_an_idle_cluster_passes():
    check_fits(bundles(4, 1, 0), [{"CPU": 2}, {"CPU": 2}])


def test_what_can_never_fit_is_refused_with_the_figures():
    with pytest.raises(SpecError) as caught:
        check_fits(bundles(3, 2, 0), [{"CPU": 3}, {"CPU": 3}])
    (problem,) = caught.value.problems
    assert problem.path == "resources.workers"
    assert problem.value == 3
    assert problem.allowed == "at most 2 such workers"
    assert "3 CPU; 3 CPU" in problem.message


def test_a_worker_larger_than_any_node_is_told_so():
    with pytest.raises(SpecError) as caught:
        check_fits(bundles(1, 8, 0), [{"CPU": 4}])
    assert caught.value.problems[0].allowed == "less for each worker"


def test_bundles_go_to_the_nodes_that_were_given():
    nodes = placement.given_placement({"THRESHER_PLACEMENT": '["a", "b"]'})
    assert placement.pinned([{"CPU": 1}] * 2, nodes) == [{"ray.io/node-id": "a"}, {"ray.io/node-id": "b"}]
    assert placement.given_placement({}) is None
    with pytest.raises(SpecError, match="3 workers were given 2 places"):
        placement.pinned([{"CPU": 1}] * 3, nodes)


@pytest.mark.parametrize("value", ["", "a", "[]", "[1]", '{"a": 1}'])
def test_a_placement_that_is_none_is_refused(value):
    with pytest.raises(SpecError, match="THRESHER_PLACEMENT"):
        placement.given_placement({"THRESHER_PLACEMENT": value})
