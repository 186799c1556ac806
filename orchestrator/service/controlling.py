"""The side of the service that looks at Ray: the address, the jobs there, its nodes, and the controller."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from cluster.local import LocalCluster, cluster_home
from cluster.observe import Dashboard
from cluster.submit import STOP_GRACE_S, RayJobs
from jobs.errors import SpecError
from orchestrator.controller import Controller
from orchestrator.controller.view import AsQueued, RayCluster
from orchestrator.scheduling import Policy
from orchestrator.service.here import ClusterNodes
from orchestrator.service.serving import Loop
from orchestrator.store import Store

_SEEN_GONE_S = 15
"""Until it is noticed that a job that used all of its time to stop is gone."""
POLICY = Policy(grace_ms=1000 * (STOP_GRACE_S + _SEEN_GONE_S))


class NoController:
    """In place of the controller, where another service on the same store has it."""

    def run(self, stop: threading.Event) -> None:
        stop.wait()

    def wake(self) -> None:
        pass

    def lease_age_s(self) -> None:
        return None


@dataclass(frozen=True)
class RaySide:
    """What the service needs of Ray.

    Attributes:
        jobs: for logs; None: no Ray was named.
        cluster: None: its nodes are not known, and nothing is refused for want of them.
    """

    address: str | None
    jobs: RayJobs | None
    cluster: ClusterNodes | None
    controller: Loop


def ray_side(given: str | None, store: Store, runs: Path, *, api_only: bool) -> RaySide:
    """Ray at the address that was given, or at RAY_API_SERVER_ADDRESS, or the local cluster of `thresher cluster up`.

    Raises SpecError where none is known, unless the service only answers.
    """
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or _local_address()
    if api_only:
        return RaySide(address, RayJobs(address) if address else None, None, NoController())
    if address is None:
        what = "the address of Ray's dashboard is needed, or a local cluster: thresher cluster up"
        raise SpecError.at("--ray", what, allowed="http://head:8265; or --api-only")
    jobs = RayJobs(address)
    cluster = RayCluster(Dashboard(address))
    controller = Controller(store, jobs, cluster, runs, POLICY)
    return RaySide(address, jobs, AsQueued(cluster, controller.taken), controller)


def _local_address() -> str | None:
    """The local cluster's dashboard; its token is put where Ray's clients look for it."""
    found = LocalCluster.find(cluster_home())
    if found is None or 0 not in found.nodes or found.dashboard is None:
        return None
    for name, value in found.client_environment.items():
        os.environ.setdefault(name, value)
    return found.dashboard
