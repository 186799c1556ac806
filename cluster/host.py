"""The run of Ray Train that keeps a TrainGroup's workers, and the mailbox through which they are given works.

Ray Train runs one function in each of its workers and tells the outside how it ended; it has no way to hand them the
next function. So its function here is `serve`: it asks the Host, an actor that holds no CPU, for works, runs them in a
Member as a gang does, and sends back what became of them. The Host also drives the run itself, and learns from it which
worker has died.
"""

import asyncio
import contextlib
import itertools
import pickle
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from cluster.gang import environments
from cluster.member import Member, Place, Pulse
from cluster.session import Peer
from jobs.context import Context
from jobs.errors import JobFailed, ThresherError, WorkerLost

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

_BEAT_S = 0.25
"""Between two signs of life of a worker; each brings back whether its work is to end early."""
_REPORTS_WAIT_S = 10.0
RAY_TRAIN_SETTINGS = {
    # How often the controller looks after its workers: by itself, every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A gang's members stay in the folder that Ray starts them in, too: a spec may name files by relative paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Entry:
    """A worker that has arrived at the host."""

    place: Place
    port: int
    """One that was free there a moment ago, for the rendezvous if the worker is rank 0."""
    handle: "ActorHandle"
    placement_group: "PlacementGroup"


@dataclass(frozen=True)
class Settings:
    """What the host's run of Ray Train is like."""

    run_name: str
    storage: str
    """An empty folder of the host's machine. Ray Train demands one; nothing that counts is written to it."""
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    startup_timeout_s: float

    @property
    def num_threads(self) -> int:
        return max(1, int(self.cpus_per_worker))

    @property
    def environment(self) -> dict[str, str]:
        return RAY_TRAIN_SETTINGS | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self.startup_timeout_s)}


@dataclass
class _Line:
    """What the host keeps of one worker."""

    works: "asyncio.Queue[tuple[int, bytes] | None]" = field(default_factory=asyncio.Queue)
    runs: "dict[int, asyncio.Future[Any]]" = field(default_factory=dict)
    pings: "list[asyncio.Future[Pulse]]" = field(default_factory=list)
    stopped: int = 0


class Host:
    """An asynchronous actor: everything happens in one thread, and every call may wait without holding up another.

    The first group of methods is for the run itself; the second is what a GangSession asks of members, with the rank in
    front; the third is for the workers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lines = [_Line() for _ in range(settings.workers)]
        self._entries: dict[int, Entry] = {}
        self._entered = asyncio.Event()
        self._changed = asyncio.Condition()
        self._reports: list[dict[str, Any]] = []
        self._drained = 0
        self._lost: int | None = None
        self._loss: WorkerLost | None = None

    # --- the run -----------------------------------------------------------------------------------------------

    async def fit(self) -> None:
        """The whole run of Ray Train, until `end` or a death. Never raises: those who wait for workers are told."""
        handle = ray.get_runtime_context().current_actor
        cause = await asyncio.to_thread(_fit, self._settings, handle)
        await self.lose({0: cause})

    async def gathered(self) -> list[Entry]:
        """All workers in rank order, once each of them has arrived. Raises WorkerLost if that will never be."""
        await self._entered.wait()
        if self._loss is not None:
            raise self._loss
        return [self._entries[rank] for rank in range(self._settings.workers)]

    async def arrived(self) -> list[Entry]:
        """The workers that have arrived by now."""
        return list(self._entries.values())

    async def whole(self) -> bool:
        """Whether all workers live. With the first that dies, Ray Train ends the others."""
        return self._loss is None

    async def end(self) -> None:
        """Lets idle workers go: the run ends."""
        for line in self._lines:
            line.works.put_nowait(None)

    async def forget(self) -> None:
        """Nobody waits for the workers any more, whatever becomes of them."""
        for line in self._lines:
            line.runs.clear()
            line.pings.clear()

    async def lose(self, causes: dict[int, str]) -> None:
        """Ray Train has found workers dead, by rank, or has ended. One of them is told of: it costs all of them."""
        if self._loss is not None:
            return
        self._lost = min(causes)
        cause, entry = causes[self._lost], self._entries.get(self._lost)
        if entry is None:
            self._loss = WorkerLost(f"worker {self._lost} was lost before it had started: {cause}")
        else:
            self._loss = Peer(self._lost, entry.handle, entry.place).lost(cause)
        for run in self._lines[self._lost].runs.values():
            if not run.done():
                run.set_exception(self._loss)
        self._entered.set()
        await self._notify()

    # --- for a session -----------------------------------------------------------------------------------------

    async def run(self, rank: int, number: int, work: bytes) -> Any:
        """What the worker's run of a work returned. Raises its error, and WorkerLost if it is the one that is lost."""
        line = self._lines[rank]
        if self._loss is not None and self._lost == rank:
            raise self._loss
        outcome = line.runs[number] = asyncio.get_running_loop().create_future()
        line.works.put_nowait((number, work))
        return await outcome

    async def ping(self, rank: int) -> Pulse:
        """The pulse that the worker sends next; none comes from the dead."""
        pulse: asyncio.Future[Pulse] = asyncio.get_running_loop().create_future()
        self._lines[rank].pings.append(pulse)
        return await pulse

    async def request_stop(self, rank: int, number: int) -> None:
        self._lines[rank].stopped = max(self._lines[rank].stopped, number)

    async def take_reports(
        self, rank: int, number: int, timeout_s: float, gather_s: float
    ) -> tuple[list[dict[str, Any]], bool]:
        """As `Member.take_reports`. When the worker has died, what has arrived is the last of them."""

        def last() -> bool:
            return self._drained >= number or self._lost == rank

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._reports or last()), timeout_s)
                if gather_s > 0:
                    await asyncio.wait_for(self._changed.wait_for(last), gather_s)
        taken, self._reports = self._reports, []
        return taken, last()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- for the workers ---------------------------------------------------------------------------------------

    async def enter(self, rank: int, entry: Entry) -> dict[str, str]:
        """Takes a worker's place down; answers, when all have come, with what torchrun would set there."""
        self._entries[rank] = entry
        if len(self._entries) == self._settings.workers:
            self._entered.set()
        await self._entered.wait()
        entries = await self.gathered()
        return environments([one.place for one in entries], entries[0].port)[rank]

    async def next_work(self, rank: int) -> tuple[int, bytes] | None:
        """Waits for the next work. None: there will be none."""
        return await self._lines[rank].works.get()

    async def beat(self, rank: int, pulse: Pulse) -> int:
        """Takes a sign of life. Answers up to which number works are to end early."""
        line = self._lines[rank]
        for ping in line.pings:
            if not ping.done():
                ping.set_result(pulse)
        line.pings.clear()
        return line.stopped

    async def deliver(self, number: int, reports: list[dict[str, Any]], last: bool) -> None:
        """Takes reports of rank 0."""
        self._reports += reports
        if last:
            self._drained = number
        await self._notify()

    async def finish(self, rank: int, number: int, result: Any, error: ThresherError | None) -> None:
        run = self._lines[rank].runs.pop(number, None)
        if run is None or run.done():
            return
        if error is None:
            run.set_result(result)
        else:
            run.set_exception(error)


def _fit(settings: Settings, host: "ActorHandle") -> str:
    """Runs Ray Train. Returns why it has ended."""
    # Not at the top: whoever only starts the host need not wait for these imports.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Obituaries(UserCallback):
        """Lives in Ray Train's controller, and knows of a death before the run has been wound up."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            host.lose.remote({rank: _cause(error) for rank, error in worker_exceptions.items()})

    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    trainer = DataParallelTrainer(
        serve,
        train_loop_config={"host": host, "num_threads": settings.num_threads},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(settings.gpus_per_worker),
            resources_per_worker=resources,
            placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=settings.run_name,
            storage_path=settings.storage,
            # The group itself decides what follows a loss.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[Obituaries()],
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        return _cause(error)
    return "its run of Ray Train has ended"


def _cause(error: BaseException) -> str:
    """The innermost error's last line."""
    while (inner := error.__cause__ or getattr(error, "health_check_failure", None)) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].partition(" Some common causes include")[0]


def serve(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker: one work after the other, always in the same thread, until there are none."""
    from ray.train import get_context

    host: ActorHandle = config["host"]
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    member = Member(config["num_threads"])
    context = ray.get_runtime_context()
    entry = Entry(member.place(), member.free_port(), context.current_actor, ray.util.get_current_placement_group())
    member.seat(rank, size, ray.get(host.enter.remote(rank, entry)))
    threading.Thread(target=_beat, args=(host, member, rank), daemon=True).start()
    if rank == 0:
        threading.Thread(target=_courier, args=(host, member), daemon=True).start()
    while (asked := ray.get(host.next_work.remote(rank))) is not None:
        _perform(host, member, rank, *asked)


def _unpacked(context: Context, packed: bytes) -> Any:
    """The work that was packed, its request in it. Unpacked here, because whatever fails here is the work's failure."""
    work, request = pickle.loads(packed)  # noqa: S301 - from the driver, as everything that Ray brings
    return work(context, request)


def _perform(host: "ActorHandle", member: Member, rank: int, number: int, packed: bytes) -> None:
    try:
        result = member.run(number, _unpacked, packed)
    except ThresherError as error:
        ray.get(host.finish.remote(rank, number, None, error))
        return
    try:
        answer = host.finish.remote(rank, number, result, None)
    except (TypeError, pickle.PicklingError) as error:
        answer = host.finish.remote(rank, number, None, JobFailed(f"worker {rank}: its result cannot travel: {error}"))
    ray.get(answer)


def _beat(host: "ActorHandle", member: Member, rank: int) -> None:
    """As long as the host lives: says that this process does, and hears what is to end early."""
    with contextlib.suppress(RayError):
        while True:
            member.request_stop(ray.get(host.beat.remote(rank, member.ping())))
            time.sleep(_BEAT_S)


def _courier(host: "ActorHandle", member: Member) -> None:
    """Brings the reports of each work to the host, as long as it lives."""
    with contextlib.suppress(RayError):
        for number in itertools.count(1):
            last = False
            while not last:
                reports, last = member.take_reports(number, _REPORTS_WAIT_S)
                if reports or last:
                    ray.get(host.deliver.remote(number, reports, last))
