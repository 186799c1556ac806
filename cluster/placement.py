"""From a gang's demand to resources that are held for it.

The rules, in Ray's words: a *bundle* is what one worker needs on one node, and never spans nodes; a *placement group*
reserves all bundles of a gang or none, so that two jobs that each got half of their workers can never wait for each
other. Bundles are packed onto as few nodes as possible, because the workers of a gang talk to each other.

`bundles` and `capacity` are pure; `reserve`, `request` and `release` are the effects. Who reserves a group releases
it: a gang that was handed somebody else's placement group leaves it alone.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.errors import JobFailed, SpecError, WorkerLost

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU."""

PLACEMENT_VARIABLE = "THRESHER_PLACEMENT"
"""JSON list of Ray node ids, one a worker: where the service has made room for this job, and nowhere else."""

_NODE_LABEL = "ray.io/node-id"
_WAIT_SLICE_S = 1.0
_RELEASE_TIMEOUT_S = 10.0


def bundles(workers: int, cpus_per_worker: float, gpus_per_worker: float) -> list[dict[str, float]]:
    """One bundle a worker, in rank order.

    >>> bundles(2, 1, 0)
    [{'CPU': 1}, {'CPU': 1}]
    """
    if workers < 1:
        raise ValueError(f"a gang has at least one worker, not {workers}")
    if cpus_per_worker <= 0 or gpus_per_worker < 0:
        raise ValueError(f"a worker needs some CPU ({cpus_per_worker}) and no less than no GPU ({gpus_per_worker})")
    bundle = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        bundle["GPU"] = gpus_per_worker
    return [dict(bundle) for _ in range(workers)]


def capacity(bundle: Resources, nodes: Sequence[Resources]) -> int:
    """How many bundles of this kind nodes with these resources hold: each fits whole into one node, or not at all.

    >>> capacity({"CPU": 2}, [{"CPU": 3}, {"CPU": 4}])
    3
    """
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items() if amount) for node in nodes
    )


def check_fits(demand: Sequence[Resources], nodes: Sequence[Resources]) -> None:
    """Refuses a gang of equal bundles that a cluster of these nodes can never hold, even when it is idle.

    Raises SpecError at `resources.workers`, with the figures.
    """
    most = capacity(demand[0], nodes)
    if len(demand) <= most:
        return
    needs = " and ".join(f"{amount:g} {name}" for name, amount in demand[0].items())
    has = "; ".join(", ".join(f"{node.get(name, 0.0):g} {name}" for name in demand[0]) for node in nodes)
    raise SpecError.at(
        "resources.workers",
        f"{len(demand)} workers of {needs} each can never start on this cluster, whose nodes have {has or 'nothing'}",
        len(demand),
        f"at most {most} such workers" if most else "less for each worker",
    )


def given_placement(environment: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """The nodes that the service chose for this job's workers; None: the job was not started by it.

    Raises SpecError for a value that is no list of ids.
    """
    text = environment.get(PLACEMENT_VARIABLE)
    if text is None:
        return None
    try:
        nodes = json.loads(text)
    except ValueError:
        nodes = None
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) and node for node in nodes):
        raise SpecError.at(PLACEMENT_VARIABLE, "no list of nodes", text, "a JSON list of Ray node ids, one a worker")
    return tuple(nodes)


def pinned(demand: Sequence[Resources], nodes: Sequence[str] | None) -> list[dict[str, str]] | None:
    """The label selector of each bundle. Raises SpecError for more bundles than were given places.

    >>> pinned([{"CPU": 1}], ["5f"])
    [{'ray.io/node-id': '5f'}]
    """
    if nodes is None:
        return None
    if len(demand) > len(nodes):
        raise SpecError.at(PLACEMENT_VARIABLE, f"{len(demand)} workers were given {len(nodes)} places", list(nodes))
    return [{_NODE_LABEL: node} for node in nodes[: len(demand)]]


def reserve(demand: Sequence[Resources], timeout_s: float) -> "PlacementGroup":
    """Holds all bundles at once, on the given nodes if any are; what others occupy now is waited for.

    Raises:
        SpecError: this cluster can never hold them.
        WorkerLost: the given nodes are gone, or had no room within `timeout_s`. Nothing is held then.
        JobFailed: they did not become free within `timeout_s`. Nothing is held then.
    """
    import ray

    check_fits(demand, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    given = given_placement()
    group = request(demand, given)
    deadline = time.monotonic() + timeout_s
    try:
        # In slices, because an interruption by the user is only seen between calls into Ray.
        while not group.wait(max(0.0, min(_WAIT_SLICE_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                if given is not None:
                    raise WorkerLost(f"the nodes that were given had no room within {timeout_s:g} s: {given}")
                raise JobFailed(
                    f"the cluster had no room for {len(demand)} workers of {dict(demand[0])} within {timeout_s:g} s; "
                    f"free now: { {name: ray.available_resources().get(name, 0.0) for name in demand[0]} }"
                )
    except BaseException:
        release(group)
        raise
    return group


def request(demand: Sequence[Resources], nodes: Sequence[str] | None = None) -> "PlacementGroup":
    """Asks for bundles, each on its node if `nodes` says so, without waiting: a standing request until its release."""
    from ray.util.placement_group import placement_group

    selector: Any = pinned(demand, nodes)
    return placement_group([dict(bundle) for bundle in demand], strategy="PACK", bundle_label_selector=selector)


def is_placed(group: "PlacementGroup") -> bool:
    """Whether all bundles lie on living nodes at this moment."""
    from ray.util.placement_group import placement_group_table

    return placement_group_table(group).get("state") == "CREATED"


def release(group: "PlacementGroup") -> None:
    """Gives the bundles back, with whatever still runs in them, and waits until Ray has done so.

    Raises JobFailed if it has not within ten seconds.
    """
    from ray.util.placement_group import placement_group_table, remove_placement_group

    remove_placement_group(group)
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while placement_group_table(group).get("state", "REMOVED") != "REMOVED":
        if time.monotonic() >= deadline:
            raise JobFailed(f"Ray did not remove placement group {group.id.hex()} within {_RELEASE_TIMEOUT_S:g} s")
        time.sleep(0.01)
