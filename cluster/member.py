"""One worker process of a gang, as seen from inside.

Ray calls a Member in three threads, so that none waits for another: `work` runs one work after the other, always in
the same thread (process groups and optimizers keep state in it); `reports` holds the outstanding question for
reports; `control` answers pings and takes stop requests while work runs.
"""

import os
import socket
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from jobs.errors import JobFailed, OutOfMemory, ThresherError, ran_out_of_memory

if TYPE_CHECKING:
    from cluster.workers import Work

CONCURRENCY_GROUPS = {"work": 1, "reports": 1, "control": 1}

_TRACEBACK_LINES = 12

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Pulse:
    """How far a work has come: what a member answers to a ping."""

    beats: int
    """Signs of life since the work began; 0 for a work that gives none."""
    age_s: float
    """Since the last of them."""


@dataclass(frozen=True)
class Place:
    """Where a member runs."""

    node_id: str
    node_ip: str
    pid: int


class Seat:
    """The jobs.context.Context of one work in this process."""

    def __init__(self, member: "Member", number: int, rank: int, size: int, num_threads: int) -> None:
        self._member = member
        self._number = number
        self.rank = rank
        self.size = size
        self.num_threads = num_threads

    def report(self, measurement: dict[str, Any]) -> None:
        """Rank 0's measurements go to whoever started the work; those of other ranks are not asked for."""
        if self.rank == 0:
            self._member.add_report(self._number, measurement)

    def stop_requested(self) -> bool:
        return self._member.stop_requested(self._number)

    def beat(self) -> None:
        self._member.beat()


class Member:
    """Works are numbered from 1 upwards, because the three threads learn of a work at different times."""

    def __init__(self, num_threads: int) -> None:
        # Before anything here imports torch: these are read once, when its libraries are loaded.
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
        self._num_threads = num_threads
        self._rank = 0
        self._size = 1
        self._changed = threading.Condition()
        self._current = 0
        self._finished = 0
        self._stopped = 0
        self._reports: list[dict[str, Any]] = []
        self._beats, self._beaten_at = 0, time.monotonic()

    # --- control -----------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="control")
    def place(self) -> Place:
        return _here()

    @ray.method(concurrency_group="control")
    def free_port(self) -> int:
        """A port that was free a moment ago, for the rendezvous at rank 0."""
        return _free_port()

    @ray.method(concurrency_group="control")
    def seat(self, rank: int, size: int, environment: dict[str, str]) -> None:
        """Gives the member its rank, and its process the environment that torch.distributed reads."""
        self._rank = rank
        self._size = size
        os.environ.update(environment)

    @ray.method(concurrency_group="control")
    def ping(self) -> Pulse:
        """Answers, and says how the work goes on."""
        return Pulse(self._beats, time.monotonic() - self._beaten_at)

    @ray.method(concurrency_group="control")
    def request_stop(self, number: int) -> None:
        """Wants work `number` to end early; it may not have arrived yet."""
        self._stopped = max(self._stopped, number)

    # --- reports -----------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="reports")
    def take_reports(self, number: int, timeout_s: float, gather_s: float = 0.0) -> tuple[list[dict[str, Any]], bool]:
        """The reports of work `number` since the last call, and whether that was the last of them.

        Answers once there is something to say and `gather_s` have brought more of it, at once when that was the last;
        with nothing to say, after `timeout_s`.
        """
        with self._changed:
            reported = self._changed.wait_for(
                lambda: self._finished >= number or (self._current == number and bool(self._reports)), timeout_s
            )
            if reported and gather_s > 0:
                self._changed.wait_for(lambda: self._finished >= number, gather_s)
            taken: list[dict[str, Any]] = []
            if self._current == number:
                taken, self._reports = self._reports, taken
            return taken, self._finished >= number

    # --- work --------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group="work")
    def prepare(self, environment: dict[str, str], warm_up: "Work | None") -> Place:
        """Warms the member up on its own, before it gets a seat among others."""
        os.environ.update(environment)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        if warm_up is not None:
            self._perform(warm_up, Seat(self, 0, 0, 1, self._num_threads), None)
        return _here()

    @ray.method(concurrency_group="work")
    def run(self, number: int, work: "Work", request: Any) -> Any:
        """Runs a work; its result travels from rank 0 alone.

        Only our own errors cross the process border: whoever waits may not be able to import the class of another.
        """
        with self._changed:
            self._current = number
            self._reports = []
        self._beats = 0
        try:
            result = self._perform(work, Seat(self, number, self._rank, self._size, self._num_threads), request)
        finally:
            with self._changed:
                self._finished = number
                self._changed.notify_all()
            self._beats = 0
        return result if self._rank == 0 else None

    def _perform(self, work: "Work", seat: Seat, request: Any) -> Any:
        try:
            return work(seat, request)
        except ThresherError:
            raise
        except Exception as error:
            kind = OutOfMemory if ran_out_of_memory(error) else JobFailed
            raise kind(f"worker {seat.rank}: {_last_lines(error)}") from error

    def add_report(self, number: int, measurement: dict[str, Any]) -> None:
        with self._changed:
            if self._current == number:
                self._reports.append(measurement)
                self._changed.notify_all()

    def stop_requested(self, number: int) -> bool:
        return self._stopped >= number

    def beat(self) -> None:
        self._beaten_at = time.monotonic()
        self._beats += 1


def _here() -> Place:
    return Place(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


def _last_lines(error: Exception) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    shown = "\n".join(lines[-_TRACEBACK_LINES:])
    return f"{lines[-1]}\n{shown}"
