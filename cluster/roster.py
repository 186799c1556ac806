"""The member processes of a gang and the places that are held for them.

A *slot* is a bundle of a placement group: room for one member on one node. A gang of fixed size holds all its slots in
one placement group, all or none. An elastic one holds so the fewest that it can work with; each further slot is a
placement group of its own, a standing request that Ray fills when there is room, and again after its node is lost.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.member import CONCURRENCY_GROUPS, Member, Place
from cluster.placement import bundles, is_placed, release, request, reserve
from cluster.session import describe
from jobs.errors import ThresherError, WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

    from cluster.workers import Work

logger = logging.getLogger(__name__)

_KILL_TIMEOUT_S = 10.0
_PING_TIMEOUT_S = 15.0
"""Long: the living answer at once and the dead by an error, and one that is only slow must not be replaced."""
_POLL_S = 0.02
_MORE_ROOM_S = 1.0
"""How long an elastic gang waits for room beyond its smallest size before it starts."""
_BARRED_S = 2.0
"""How long no other member is started where one has failed to: its node may be lost, and Ray not know it yet."""

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""The seat of a member that is warmed up on its own."""


@dataclass(frozen=True)
class Slot:
    """Room for one member."""

    placement_group: "PlacementGroup"
    bundle: int

    def ready(self) -> bool:
        """Whether a member can start there now; not while its node is lost and no other has taken its place."""
        return is_placed(self.placement_group)


@dataclass(eq=False)
class Entry:
    """A member's process.

    Attributes:
        place: None until it has said where it runs.
        preparing: the answer that is waited for while it starts on its own; None once it can take a seat.
    """

    slot: Slot
    handle: "ActorHandle"
    place: Place | None = None
    preparing: "ObjectRef | None" = None


class Roster:
    """Who there is; the gang decides who has which rank.

    Args:
        sizes: how many members the gang may have, ascending.
        placement_group: somebody else's, to use the bundles from `first_bundle` on, and to leave in place.
        timeout_s: for the reservation of the fewest slots.

    Raises:
        SpecError, JobFailed: as `cluster.placement.reserve` does.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        cpus_per_member: float,
        gpus_per_member: float,
        placement_group: "PlacementGroup | None",
        first_bundle: int,
        timeout_s: float,
    ) -> None:
        demand = bundles(sizes[-1], cpus_per_member, gpus_per_member)
        self._cpus_per_member, self._gpus_per_member = cpus_per_member, gpus_per_member
        self._entries: list[Entry] = []
        self._barred_until: dict[Slot, float] = {}
        self._own: list[PlacementGroup] = []
        if placement_group is None:
            placement_group = reserve(demand[: sizes[0]], timeout_s)
            self._own.append(placement_group)
        self._slots = [Slot(placement_group, first_bundle + index) for index in range(sizes[0])]
        for bundle in demand[sizes[0] :]:
            self._own.append(request([bundle]))
            self._slots.append(Slot(self._own[-1], 0))
        deadline = time.monotonic() + _MORE_ROOM_S
        while len(self.vacant()) < sizes[-1] and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    @property
    def seatable(self) -> list[Entry]:
        """Members that could take a seat now, oldest first."""
        return [entry for entry in self._entries if entry.preparing is None]

    def vacant(self) -> list[Slot]:
        """Slots where a member can start now."""
        taken, now = {entry.slot for entry in self._entries}, time.monotonic()
        free = [slot for slot in self._slots if slot not in taken and self._barred_until.get(slot, 0.0) < now]
        return [slot for slot in free if slot.ready()]

    def prepare(self, warm_up: "Work | None") -> None:
        """Starts a member in every vacant slot and warms it up on its own, without waiting: see `settle`."""
        for slot in self.vacant():
            entry = self._start(slot)
            entry.preparing = entry.handle.prepare.remote(_ALONE, warm_up)

    def set_apart(self, entries: Sequence[Entry], warm_up: "Work | None", timeout_s: float) -> None:
        """Warms members that have nothing to do up on their own, so that they leave the group that they were in."""
        prepared = [entry.handle.prepare.remote(_ALONE, warm_up) for entry in entries]
        if prepared:
            ray.wait(prepared, num_returns=len(prepared), timeout=timeout_s)

    @property
    def preparing(self) -> list[Entry]:
        """Members that are not ready yet."""
        return [entry for entry in self._entries if entry.preparing is not None]

    def settle(self, timeout_s: float) -> list[ThresherError]:
        """Waits, at most so long, until a member that prepares is ready, and books those that are.

        One that failed is dismissed, its slot left alone for a while, and its error returned.
        """
        entries = {entry.preparing: entry for entry in self.preparing}
        if not entries:
            return []
        ready, _ = ray.wait(list(entries), timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(entries), num_returns=len(entries), timeout=0)
        failures: list[ThresherError] = []
        for answer in ready:
            entry = entries[answer]
            try:
                entry.place = ray.get(answer)
                entry.preparing = None
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else None
                lost = WorkerLost(f"a worker was lost while it started: {describe(error)}")
                failures.append(cause if isinstance(cause, ThresherError) else lost)
                self._barred_until[entry.slot] = time.monotonic() + _BARRED_S
                self.dismiss([entry])
        return failures

    def _start(self, slot: Slot) -> Entry:
        member = ray.remote(
            num_cpus=self._cpus_per_member,
            num_gpus=self._gpus_per_member,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups=CONCURRENCY_GROUPS,
        )(Member)
        strategy = PlacementGroupSchedulingStrategy(slot.placement_group, slot.bundle)
        handle = member.options(scheduling_strategy=strategy).remote(max(1, int(self._cpus_per_member)))
        self._entries.append(Entry(slot, handle))
        return self._entries[-1]

    def dismiss(self, entries: Sequence[Entry]) -> None:
        """Kills members and waits until Ray has confirmed it: only then are their slots free for others."""
        for entry in entries:
            self._entries.remove(entry)
            ray.kill(entry.handle)
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        for entry in entries:
            while not _is_dead(entry.handle, deadline):
                if time.monotonic() >= deadline:
                    logger.warning("Ray has not confirmed the end of a killed worker: %s", entry.handle)
                    break

    def dismiss_dead(self) -> None:
        """Dismisses members that do not answer."""
        seatable = self.seatable
        pings = {entry.handle.ping.remote(): entry for entry in seatable}
        ready, silent = ray.wait(list(pings), num_returns=len(pings), timeout=_PING_TIMEOUT_S) if pings else ([], [])
        self.dismiss([pings[ping] for ping in ready if not _answered(ping)] + [pings[ping] for ping in silent])

    def dismiss_all(self) -> None:
        self.dismiss(list(self._entries))

    def release(self) -> None:
        """Gives back the placement groups that are the gang's own."""
        while self._own:
            release(self._own.pop())


def answers(asked: "Sequence[ObjectRef]", deadline: float, size: int) -> list[Any]:
    """What members answered by the deadline. Raises WorkerLost."""
    try:
        return ray.get(list(asked), timeout=max(0.0, deadline - time.monotonic()))
    except GetTimeoutError as error:
        raise WorkerLost(f"{size} workers did not start in time") from error
    except RayError as error:
        raise WorkerLost(f"a worker died while it started: {describe(error)}") from error


def _answered(ping: "ObjectRef") -> bool:
    try:
        ray.get(ping)
    except RayError:
        return False
    return True


def _is_dead(handle: "ActorHandle", deadline: float) -> bool:
    try:
        ray.get(handle.ping.remote(), timeout=max(0.0, deadline - time.monotonic()))
    except RayActorError:
        return True
    except GetTimeoutError:
        return False
    return False
