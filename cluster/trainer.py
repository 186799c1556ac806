"""A WorkerGroup whose workers are those of a run of Ray Train (`resources.runtime: ray_train`).

What works, sessions and `run_work` see is the same as with a gang; the tests hold both to it. What differs: a group
starts in some fifteen seconds instead of five, the death of one worker costs all of them, because Ray Train then ends
the run, and it has one size. In exchange the workers stand where Ray Train's own tools look for them, in an environment
that other libraries expect.
"""

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.host import Entry, Host, Settings
from cluster.placement import bundles, release, reserve
from cluster.session import Peer, describe
from cluster.warm import WarmGroup
from jobs.errors import WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    from cluster.workers import Work

logger = logging.getLogger(__name__)

_SETTLE_S = 5.0
"""How long workers that are still busy with a work that has failed elsewhere are waited for."""
_END_TIMEOUT_S = 10.0
"""How long a run of Ray Train may take to end by itself."""
_WAIT_SLICE_S = 1.0
"""The longest single wait, so that an interruption by the user is seen."""


@dataclass(frozen=True)
class _Method:
    call: Callable[..., "ObjectRef"]

    def remote(self, *arguments: Any) -> "ObjectRef":
        return self.call(*arguments)


class _Relay:
    """A worker in the shape in which a GangSession addresses a member: every call goes through the host."""

    def __init__(self, host: "ActorHandle", rank: int) -> None:
        def through(method: Any) -> _Method:
            return _Method(lambda *arguments: method.remote(rank, *arguments))

        self.run = _Method(
            lambda number, work, request: host.run.remote(rank, number, cloudpickle.dumps((work, request)))
        )
        self.ping = through(host.ping)
        self.take_reports = through(host.take_reports)
        self.request_stop = through(host.request_stop)


@dataclass
class _Fit:
    """One run of Ray Train, as far as it has come."""

    host: "ActorHandle"
    ended: "ObjectRef"
    entries: list[Entry]
    storage: str


class TrainGroup(WarmGroup):
    """Workers in one run of Ray Train; a context manager that leaves nothing behind.

    >>> with TrainGroup(workers=2, warm_up=set_up_process_groups) as group:
    ...     session = group.start(train, request)

    A work that failed may leave workers dead, or waiting for a dead peer: the next `start` notices and rebuilds
    the group first. Each worker's environment holds what torchrun would set.
    """

    def __init__(
        self,
        workers: int | Sequence[int],
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        warm_up: "Work | None" = None,
        startup_timeout_s: float = 120.0,
        silence_timeout_s: float = 30.0,
        stall_timeout_s: float = 600.0,
    ) -> None:
        """Starts the workers and returns when all of them are warm. Arguments and errors are those of a Gang.

        Raises ValueError for several sizes: Ray Train would begin anew in whatever size the cluster has room for.
        """
        super().__init__(silence_timeout_s, stall_timeout_s)
        (self._workers,) = (workers,) if isinstance(workers, int) else workers
        self._demand = bundles(self._workers, cpus_per_worker, gpus_per_worker)
        self._resources = (cpus_per_worker, gpus_per_worker)
        self._warm_up = warm_up
        self._startup_timeout_s = startup_timeout_s
        self._fit: _Fit | None = None
        self.queued_s = 0.0
        """How long the group waited for room when it started first."""
        started = time.monotonic()
        self._await_room()
        self.queued_s = time.monotonic() - started
        self._form()

    @property
    def size(self) -> int:
        return self._workers

    def rebuild(self) -> None:
        """Ends what is left of the run of Ray Train and starts another. Raises as the constructor does."""
        self._abandon()
        self._await_room()
        self._form()

    def can_grow(self) -> bool:
        return False

    def stop(self) -> None:
        """Ends the run of Ray Train with every worker, and waits until they are gone."""
        if ray.is_initialized():
            self._abandon()

    # --- inside ------------------------------------------------------------------------------------------------

    def _whole(self) -> bool:
        """Whether every worker is alive and idle."""
        if self._fit is None:
            return False
        try:
            whole: bool = ray.get(self._fit.host.whole.remote(), timeout=_SETTLE_S)
        except (RayError, GetTimeoutError):
            return False
        return whole and (self._session is None or self._session.idle(_SETTLE_S))

    def _await_room(self) -> None:
        """Until the cluster has room. Ray Train would wait for it by itself, and not say for what."""
        release(reserve(self._demand, self._startup_timeout_s))

    def _form(self) -> None:
        """Starts a run of Ray Train, waits for its workers and warms them up together."""
        deadline = time.monotonic() + self._startup_timeout_s
        try:
            self._fit = self._launch()
            self._gather(self._fit, deadline)
            self._peers = [
                Peer(rank, _Relay(self._fit.host, rank), entry.place) for rank, entry in enumerate(self._fit.entries)
            ]
            if self._warm_up is not None:
                self._session = self._begin(self._warm_up, None)
                self._session.result(deadline - time.monotonic())
        except TimeoutError as error:
            self._abandon()
            raise WorkerLost(f"warm-up took longer than {self._startup_timeout_s:g} s") from error
        except BaseException:
            self._abandon()
            raise

    def _launch(self) -> _Fit:
        settings = Settings(
            # A name that was used before would go on with that run.
            run_name=f"thresher-{uuid.uuid4().hex}",
            storage=tempfile.mkdtemp(prefix="thresher-train-"),
            workers=self._workers,
            cpus_per_worker=self._resources[0],
            gpus_per_worker=self._resources[1],
            startup_timeout_s=self._startup_timeout_s,
        )
        host = (
            ray.remote(Host)
            .options(
                num_cpus=0,
                # Five calls of each worker may be waiting at once.
                max_concurrency=32 + 8 * self._workers,
                runtime_env={"env_vars": settings.environment},
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
            )
            .remote(settings)
        )
        return _Fit(host, host.fit.remote(), [], settings.storage)

    def _gather(self, fit: _Fit, deadline: float) -> None:
        gathered = fit.host.gathered.remote()
        while not ray.wait([gathered], timeout=_WAIT_SLICE_S)[0]:
            if time.monotonic() >= deadline:
                fit.entries = ray.get(fit.host.arrived.remote(), timeout=_END_TIMEOUT_S)
                came = f"{len(fit.entries)} of {self._workers} workers"
                raise WorkerLost(f"only {came} started within {self._startup_timeout_s:g} s")
        try:
            fit.entries = ray.get(gathered)
        except RayTaskError as error:
            if isinstance(error.cause, WorkerLost):
                raise error.cause from None
            raise
        except RayError as error:
            raise WorkerLost(f"the workers could not start: {describe(error)}") from error

    def _abandon(self) -> None:
        """Ends the run: in good order if all workers are idle, else by force."""
        fit, session = self._fit, self._session
        self._fit, self._peers, self._session, self._num_works = None, [], None, 0
        if fit is None:
            return
        if session is None or session.idle(0.0):
            fit.host.end.remote()
            ray.wait([fit.ended], timeout=_END_TIMEOUT_S)
        fit.host.forget.remote()
        for entry in fit.entries:
            ray.kill(entry.handle)
        # The run ends by itself once it has noticed that; only then is nothing of it left.
        ray.wait([fit.ended], timeout=_END_TIMEOUT_S if fit.entries else 0.0)
        ray.kill(fit.host)
        for entry in fit.entries[:1]:
            release(entry.placement_group)
        shutil.rmtree(fit.storage, ignore_errors=True)
