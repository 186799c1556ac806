"""Gloo ranks that stay alive: processes that run what they are told, in worlds of any size, one task at a time."""

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any

from jobs.context import LocalContext, WorkRef

TIMEOUT_S = 120


def serve(rank: int, pipe: Connection) -> None:
    world: tuple[int, int] | None = None
    while (task := pipe.recv()) is not None:
        work, request, wanted = task
        try:
            if wanted != world:
                world = _join(rank, *wanted)
            pipe.send(("done", WorkRef(work)(LocalContext(rank=rank, size=wanted[0]), request)))
        except Exception:  # noqa: BLE001 - handed to the test, which raises it
            pipe.send(("error", traceback.format_exc()))


def _join(rank: int, size: int, port: int) -> tuple[int, int]:
    from jobs.train.mesh import disband

    disband()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    return size, port


class Ranks:
    """Runs a work in the first `size` ranks, and gives back what each returned.

    Processes are started when they are first needed, and live on: they have seen other layouts before.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self.world: tuple[int, int] = (0, 0)

    def run(self, work: str, request: Any, size: int) -> list[Any]:
        assert size <= self.most
        while len(self.processes) < size:
            self._start()
        if self.world[0] != size:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.world = (size, probe.getsockname()[1])
        for pipe in self.pipes[:size]:
            pipe.send((work, request, self.world))
        answers = []
        for rank, pipe in enumerate(self.pipes[:size]):
            if not pipe.poll(TIMEOUT_S):
                self._abandon()
                raise AssertionError(f"rank {rank} has not answered within {TIMEOUT_S} s")
            answers.append(pipe.recv())
            if answers[-1][0] == "error":
                self._abandon()  # the others may wait for it for ever
                raise AssertionError(f"rank {rank}: {answers[-1][1]}")
        return [value for _, value in answers]

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(len(self.processes), theirs), daemon=True)
        process.start()
        self.pipes.append(ours)
        self.processes.append(process)

    def _abandon(self) -> None:
        for process in self.processes:
            process.kill()
        self.pipes, self.processes, self.world = [], [], (0, 0)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()
