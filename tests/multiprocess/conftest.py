"""One set of gloo ranks, shared by all tests here: two processes that run what they are told, one task at a time."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from jobs.context import LocalContext, WorkRef

TIMEOUT_S = 120


def serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    while (task := pipe.recv()) is not None:
        work, request = task
        try:
            pipe.send(("done", WorkRef(work)(LocalContext(rank=rank, size=size), request)))
        except Exception as error:  # noqa: BLE001 - handed to the test, which raises it
            pipe.send(("error", repr(error)))


class Ranks:
    """Runs a work in every rank and gives back what each returned."""

    def __init__(self, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, work: str, request: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((work, request))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(TIMEOUT_S), f"rank {rank} has not answered within {TIMEOUT_S} s"
            answers.append(pipe.recv())
        errors = [value for kind, value in answers if kind == "error"]
        assert not errors, errors
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()
