"""A warm gang: a WorkerGroup of Ray actors that start together and outlive trials, stages and the death of a member.

Starting a process, importing torch and setting up process groups takes seconds; starting a work in a gang that has
done all this takes milliseconds.
"""

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.member import CONCURRENCY_GROUPS, Member, Place
from cluster.placement import bundles, release, reserve
from cluster.session import GangSession, Peer, describe
from jobs.errors import WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

    from cluster.workers import Work

logger = logging.getLogger(__name__)

_KILL_TIMEOUT_S = 10.0
_SETTLE_S = 5.0
"""How long `start` waits for members that are still busy with a work that has failed elsewhere."""


class Gang:
    """Workers in one placement group; a context manager that leaves nothing behind.

    >>> with Gang(workers=2, warm_up=set_up_process_groups) as gang:
    ...     session = gang.start(train, request)

    A work that failed may leave members dead, or waiting for a dead peer: the next `start` notices and rebuilds
    the gang first, so that every work begins in members that are alive and idle.

    Each worker's environment holds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as
    torchrun would set them; ranks on the same node are neighbours.
    """

    def __init__(
        self,
        workers: int,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        warm_up: "Work | None" = None,
        placement_group: "PlacementGroup | None" = None,
        first_bundle: int = 0,
        startup_timeout_s: float = 120.0,
        silence_timeout_s: float = 30.0,
    ) -> None:
        """Starts the workers and returns when all of them are warm.

        Args:
            warm_up: a work that every worker runs, with the request None, whenever its process is new.
            placement_group: somebody else's, to use the bundles from `first_bundle` on, and to leave in place;
                without one the gang reserves its own.
            startup_timeout_s: for the reservation, and again for the start.
            silence_timeout_s: a worker whose control thread does not answer for so long counts as lost. Longer
                than any native call of the work that keeps Python's interpreter lock.

        Raises:
            SpecError: the cluster can never hold the gang.
            JobFailed: the cluster had no room in time.
            WorkerLost: a worker died while it started, or did not start in time.
            ThresherError: `warm_up`'s own error.
        """
        demand = bundles(workers, cpus_per_worker, gpus_per_worker)
        self._size = workers
        self._cpus_per_worker = cpus_per_worker
        self._gpus_per_worker = gpus_per_worker
        self._warm_up = warm_up
        self._first_bundle = first_bundle
        self._startup_timeout_s = startup_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._handles: list[ActorHandle] = []
        self._peers: list[Peer] = []
        self._session: GangSession | None = None
        self._num_works = 0
        self._owns_placement_group = placement_group is None
        self._placement_group = placement_group or reserve(demand, startup_timeout_s)
        try:
            self._start_members()
        except BaseException:
            self.stop()
            raise

    @property
    def size(self) -> int:
        return self._size

    def start(self, work: "Work", request: Any) -> GangSession:
        """Starts a work in every worker. See the class about a gang that is not whole.

        Raises RuntimeError while the work before has neither ended nor been stopped.
        """
        if self._session is not None and not self._session.ended():
            raise RuntimeError("the gang is still at work; a gang runs one work at a time")
        if not self._whole():
            logger.info("rebuilding the gang: a member is dead or busy with a work that has failed")
            self.rebuild()
        self._session = self._begin(work, request)
        return self._session

    def rebuild(self) -> None:
        """Replaces every worker by a new, warm process in the same placement group. Raises as the constructor does."""
        self._kill_members()
        try:
            self._start_members()
        except BaseException:
            self._kill_members()
            raise

    def stop(self) -> None:
        """Ends every worker, waits until they are gone, and gives back the placement group if it is the gang's own."""
        if not ray.is_initialized():
            return
        self._kill_members()
        if self._owns_placement_group:
            release(self._placement_group)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- inside ------------------------------------------------------------------------------------------------

    def _whole(self) -> bool:
        return bool(self._peers) and (self._session is None or self._session.idle(_SETTLE_S))

    def _begin(self, work: "Work", request: Any) -> GangSession:
        self._num_works += 1
        return GangSession(
            self._peers,
            self._num_works,
            work,
            request,
            silence_timeout_s=self._silence_timeout_s,
            abandon=self._kill_members,
        )

    def _start_members(self) -> None:
        deadline = time.monotonic() + self._startup_timeout_s
        member = ray.remote(
            num_cpus=self._cpus_per_worker,
            num_gpus=self._gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups=CONCURRENCY_GROUPS,
        )(Member)
        for bundle in range(self._first_bundle, self._first_bundle + self._size):
            placed = member.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement_group, bundle))
            self._handles.append(placed.remote(max(1, int(self._cpus_per_worker))))
        places = self._answers([handle.place.remote() for handle in self._handles], deadline)
        order = rank_order(places)
        self._handles = [self._handles[index] for index in order]
        places = [places[index] for index in order]
        (port,) = self._answers([self._handles[0].free_port.remote()], deadline)
        seats = zip(self._handles, environments(places, port), strict=True)
        self._answers(
            [handle.seat.remote(rank, self._size, seat) for rank, (handle, seat) in enumerate(seats)], deadline
        )
        self._peers = [
            Peer(rank, handle, place) for rank, (handle, place) in enumerate(zip(self._handles, places, strict=True))
        ]
        if self._warm_up is not None:
            self._session = self._begin(self._warm_up, None)
            try:
                self._session.result(deadline - time.monotonic())
            except TimeoutError as error:
                raise WorkerLost(f"warm-up took longer than {self._startup_timeout_s:g} s") from error

    def _answers(self, asked: "Sequence[ObjectRef]", deadline: float) -> list[Any]:
        try:
            return ray.get(list(asked), timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError as error:
            raise WorkerLost(f"{self._size} workers did not start within {self._startup_timeout_s:g} s") from error
        except RayError as error:
            raise WorkerLost(f"a worker died while it started: {describe(error)}") from error

    def _kill_members(self) -> None:
        """Kills every worker and waits until Ray has confirmed it: only then is its bundle free for another."""
        handles, self._handles, self._peers, self._session = self._handles, [], [], None
        for handle in handles:
            ray.kill(handle)
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        for handle in handles:
            while not _is_dead(handle, deadline):
                if time.monotonic() >= deadline:
                    logger.warning("Ray has not confirmed the end of a killed worker: %s", handle)
                    break


def rank_order(places: Sequence[Place]) -> list[int]:
    """Indices of the places in the order in which they get ranks: those on one node are neighbours.

    Nodes come in the order of their first place, so that rank 0 stays with bundle 0.
    """
    nodes = list(dict.fromkeys(place.node_id for place in places))
    return sorted(range(len(places)), key=lambda index: nodes.index(places[index].node_id))


def environments(places: Sequence[Place], port: int) -> list[dict[str, str]]:
    """What torchrun would set in the worker at each of these places, which are in rank order."""
    nodes = [place.node_id for place in places]
    # On one machine the loopback always works, whatever interfaces and names the machine has.
    master = "127.0.0.1" if len(set(nodes)) == 1 else places[0].node_ip
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(places)),
            "LOCAL_RANK": str(nodes[:rank].count(node)),
            "LOCAL_WORLD_SIZE": str(nodes.count(node)),
            "MASTER_ADDR": master,
            "MASTER_PORT": str(port),
        }
        for rank, node in enumerate(nodes)
    ]


def _is_dead(handle: "ActorHandle", deadline: float) -> bool:
    try:
        ray.get(handle.ping.remote(), timeout=max(0.0, deadline - time.monotonic()))
    except RayActorError:
        return True
    except GetTimeoutError:
        return False
    return False
