"""What a gang and the workers of a run of Ray Train have in common: members that run one work after the other."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cluster.session import GangSession, Peer

if TYPE_CHECKING:
    from cluster.workers import Work

logger = logging.getLogger(__name__)


class WarmGroup(ABC):
    """A WorkerGroup whose members outlive works; a context manager that leaves nothing behind.

    A work that failed may leave members dead, or waiting for a dead peer: the next `start` notices and rebuilds the
    group first, so that every work begins in members that are alive and idle.
    """

    def __init__(self, silence_timeout_s: float, stall_timeout_s: float, gather_s: float = 0.0) -> None:
        self._silence_timeout_s = silence_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._gather_s = gather_s
        self._peers: Sequence[Peer] = ()
        self._session: GangSession | None = None
        self._num_works = 0

    def start(self, work: "Work", request: Any) -> GangSession:
        """Starts a work in every worker. See the class about a group that is not whole.

        Raises RuntimeError while the work before has neither ended nor been stopped.
        """
        if self._session is not None and not self._session.ended():
            raise RuntimeError("the group is still at work; a group runs one work at a time")
        if not self._whole():
            logger.info("rebuilding the group: a worker is dead or busy with a work that has failed")
            self.rebuild()
        self._session = self._begin(work, request)
        return self._session

    @abstractmethod
    def rebuild(self) -> None:
        """Makes the group whole again."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every worker and frees what they held. May be repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _whole(self) -> bool:
        """Whether every member is alive and idle."""

    @abstractmethod
    def _abandon(self) -> None:
        """Ends members that do not stop by themselves."""

    def _begin(self, work: "Work", request: Any) -> GangSession:
        self._num_works += 1
        return GangSession(
            self._peers,
            self._num_works,
            work,
            request,
            silence_timeout_s=self._silence_timeout_s,
            stall_timeout_s=self._stall_timeout_s,
            gather_s=self._gather_s,
            abandon=self._abandon,
        )
