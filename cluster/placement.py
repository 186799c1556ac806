"""From a gang's demand to resources that are held for it.

The rules, in Ray's words: a *bundle* is what one worker needs on one node, and never spans nodes; a *placement group*
reserves all bundles of a gang or none, so that two jobs that each got half of their workers can never wait for each
other. Bundles are packed onto as few nodes as possible, because the workers of a gang talk to each other.

`bundles` and `capacity` are pure; `reserve`, `request` and `release` are the effects. Who reserves a group releases
it: a gang that was handed somebody else's placement group leaves it alone.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.errors import JobFailed, SpecError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU."""

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


def reserve(demand: Sequence[Resources], timeout_s: float) -> "PlacementGroup":
    """Holds all bundles at once; what others occupy now is waited for.

    Raises:
        SpecError: this cluster can never hold them.
        JobFailed: they did not become free within `timeout_s`. Nothing is held then.
    """
    import ray

    check_fits(demand, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    group = request(demand)
    deadline = time.monotonic() + timeout_s
    try:
        # In slices, because an interruption by the user is only seen between calls into Ray.
        while not group.wait(max(0.0, min(_WAIT_SLICE_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise JobFailed(
                    f"the cluster had no room for {len(demand)} workers of {dict(demand[0])} within {timeout_s:g} s; "
                    f"free now: { {name: ray.available_resources().get(name, 0.0) for name in demand[0]} }"
                )
    except BaseException:
        release(group)
        raise
    return group


def request(demand: Sequence[Resources]) -> "PlacementGroup":
    """Asks for bundles without waiting for them: a standing request, until it is released."""
    from ray.util.placement_group import placement_group

    return placement_group([dict(bundle) for bundle in demand], strategy="PACK")


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
