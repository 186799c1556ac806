"""A warm gang: a WorkerGroup of Ray actors that start together and outlive trials, stages and the death of a member.

Starting a process, importing torch and setting up process groups takes seconds; starting a work in a gang that has
done all this takes milliseconds. When a member is lost, the others live on: they form a new group with whoever takes
its place, or without it if the gang is elastic.
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray

from cluster.member import Place
from cluster.roster import Entry, Roster, answers
from cluster.session import Peer
from cluster.warm import WarmGroup
from jobs.errors import WorkerLost

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from cluster.workers import Work

logger = logging.getLogger(__name__)

_ECHO_S = 2.0
"""How long a failure is given to reach the members that wait for whoever failed."""
_SETTLE_S = 10.0
"""How long members that are still busy with a work that has failed elsewhere are waited for: then they are replaced."""
_LOOK_FOR_ROOM_S = 1.0
"""Between two looks for room to start members in."""
_LATECOMERS_S = 3.0
"""How long members beyond the smallest size are waited for once there are enough."""
_NODE_LOSS_NOTICED_S = 30.0
"""Within this, Ray knows that a node is lost (by default after some fifteen seconds)."""
_POLL_S = 0.05


class Gang(WarmGroup):
    """Workers with a slot each; a context manager that leaves nothing behind.

    >>> with Gang(workers=2, warm_up=set_up_process_groups) as gang:
    ...     session = gang.start(train, request)

    Each worker's environment holds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as
    torchrun would set them; ranks on the same node are neighbours. They change when the gang forms anew.
    """

    def __init__(
        self,
        workers: int | Sequence[int],
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        warm_up: "Work | None" = None,
        placement_group: "PlacementGroup | None" = None,
        first_bundle: int = 0,
        startup_timeout_s: float = 120.0,
        silence_timeout_s: float = 30.0,
        stall_timeout_s: float = 600.0,
        gather_s: float = 0.0,
    ) -> None:
        """Starts the workers and returns when all of them are warm.

        Args:
            workers: how many; or for an elastic gang the numbers that it may have, ascending. It then takes as many
                as there is room for, at least the first of them.
            warm_up: a work that every worker runs, with the request None, whenever its process is new or its seat
                has changed.
            placement_group: somebody else's, to use the bundles from `first_bundle` on, and to leave in place;
                without one the gang reserves its own.
            startup_timeout_s: for the reservation, and again for the start.
            silence_timeout_s: a worker whose control thread does not answer for so long counts as lost. Longer
                than any native call of the work that keeps Python's interpreter lock.
            stall_timeout_s: a worker whose work gave no sign of progress (`Context.beat`) for so long counts as
                lost; a work that never gives one is not judged.
            gather_s: how long a report may wait for others to go with it: each answer costs both sides a call.

        Raises:
            SpecError: the cluster can never hold the gang.
            JobFailed: the cluster had no room in time.
            WorkerLost: a worker died while it started, or did not start in time.
            ThresherError: `warm_up`'s own error.
        """
        super().__init__(silence_timeout_s, stall_timeout_s, gather_s)
        self._sizes = (workers,) if isinstance(workers, int) else tuple(workers)
        self._warm_up = warm_up
        self._startup_timeout_s = startup_timeout_s
        self._looked_at = 0.0
        started = time.monotonic()
        self._roster = Roster(
            self._sizes, cpus_per_worker, gpus_per_worker, placement_group, first_bundle, startup_timeout_s
        )
        self.queued_s = time.monotonic() - started
        """How long the gang waited for room."""
        try:
            self._form()
        except BaseException:
            self.stop()
            raise

    @property
    def size(self) -> int:
        return len(self._peers)

    def rebuild(self) -> None:
        """Makes the gang whole again: replaces the members that are lost or stuck, and has the others form a new group.

        An elastic gang takes the members that it has, and those that were warmed up meanwhile (`can_grow`), and waits
        for others only below its smallest size. Raises as the constructor does; then no member is left.
        """
        self._dismiss_unfit()
        self._peers, self._session = [], None
        try:
            self._form()
        except BaseException:
            self._roster.dismiss_all()
            self._peers, self._session = [], None
            raise

    def can_grow(self) -> bool:
        """Whether `rebuild` would make the gang larger at once. Newcomers are warmed up before it says so."""
        if self.size == self._sizes[-1] or time.monotonic() < self._looked_at + _LOOK_FOR_ROOM_S:
            return False
        self._looked_at = time.monotonic()
        for error in self._roster.settle(0.0):
            logger.warning("a newcomer to the gang could not start: %s", error)
        self._roster.prepare(self._warm_up)
        return self._best_size(len(self._roster.seatable)) > self.size

    def stop(self) -> None:
        """Ends every worker, waits until they are gone, and gives back the placement groups that are the gang's own."""
        if not ray.is_initialized():
            return
        self._roster.dismiss_all()
        self._peers, self._session = [], None
        self._roster.release()

    # --- inside ------------------------------------------------------------------------------------------------

    def _whole(self) -> bool:
        return bool(self._peers) and (self._session is None or self._session.idle(_SETTLE_S))

    def _abandon(self) -> None:
        self._roster.dismiss_all()
        self._peers, self._session = [], None

    def _dismiss_unfit(self) -> None:
        """Dismisses who is lost; then who still waits for them; then who does not answer."""
        if self._session is not None:
            # One that is stuck goes first: only then do those end that wait for it.
            self._dismiss_peers(self._session.lost)
            self._session.settle(_ECHO_S)
            if self._session.busy:
                # They wait for one that has failed and lives on: its connections close when it leaves the group.
                busy = {peer.handle for peer in self._session.busy}
                failed = [entry for entry in self._roster.seatable if entry.handle not in busy]
                self._roster.set_apart(failed, self._warm_up, _SETTLE_S)
                self._session.settle(_SETTLE_S)
            self._dismiss_peers(self._session.busy)
        self._roster.dismiss_dead()

    def _dismiss_peers(self, peers: Sequence[Peer]) -> None:
        handles = {peer.handle for peer in peers}
        self._roster.dismiss([entry for entry in self._roster.seatable if entry.handle in handles])

    def _best_size(self, members: int) -> int:
        """The largest size that so many members make; 0 if none."""
        return max((size for size in self._sizes if size <= members), default=0)

    def _gather(self, deadline: float) -> None:
        """Until there are members for the smallest size. Those that start with them are waited for a little longer."""
        roster, fewest, enough_at = self._roster, self._sizes[0], None
        # Where a node is lost, Ray offers its places until it has noticed.
        noticed_by = time.monotonic() + _NODE_LOSS_NOTICED_S
        if len(roster.seatable) >= fewest:
            return
        while enough_at is None or (roster.preparing and time.monotonic() < enough_at + _LATECOMERS_S):
            if enough_at is None and time.monotonic() >= deadline:
                started = f"{len(roster.seatable)} of {fewest} workers"
                raise WorkerLost(f"only {started} started within {self._startup_timeout_s:g} s")
            roster.prepare(self._warm_up)
            failures = roster.settle(_LOOK_FOR_ROOM_S)
            own = [error for error in failures if not isinstance(error, WorkerLost)]
            if own or (failures and time.monotonic() > noticed_by):
                raise (own or failures)[0]
            if enough_at is None and len(roster.seatable) >= fewest:
                enough_at = time.monotonic()
            elif not roster.preparing:
                time.sleep(_POLL_S)

    def _form(self) -> None:
        """Fills the slots that are needed, gives the members ranks and warms them up together."""
        deadline = time.monotonic() + self._startup_timeout_s
        self._gather(deadline)
        roster = self._roster
        members = roster.seatable[: self._best_size(len(roster.seatable))]
        members = [members[index] for index in rank_order([_place(entry) for entry in members])]
        (port,) = answers([members[0].handle.free_port.remote()], deadline, len(members))
        seats = environments([_place(entry) for entry in members], port)
        answers(
            [
                entry.handle.seat.remote(rank, len(members), seat)
                for rank, (entry, seat) in enumerate(zip(members, seats, strict=True))
            ],
            deadline,
            len(members),
        )
        self._peers = [Peer(rank, entry.handle, _place(entry)) for rank, entry in enumerate(members)]
        if self._warm_up is not None:
            self._session = self._begin(self._warm_up, None)
            try:
                self._session.result(deadline - time.monotonic())
            except TimeoutError as error:
                raise WorkerLost(f"warm-up took longer than {self._startup_timeout_s:g} s") from error


def _place(entry: Entry) -> Place:
    assert entry.place is not None, "a member that could take a seat has said where it is"
    return entry.place


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
