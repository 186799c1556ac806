"""A driver whose searches end in every way there is, one after the other, on a Ray that outlives them.

    python -m tests.ray.endings ADDRESS STORAGE

It says `ready` and waits for a line before each, so that whoever started it can look around. The last one is there to
be killed.
"""

import signal
import sys
from pathlib import Path

import pytest

from cluster.connect import connect
from jobs.errors import Interrupted, JobFailed
from orchestrator import JobSpec, StopSearch, TrialEpoch, search
from tests.ray.sweep import DIGITS

CONNECT_TIMEOUT_S = 120.0
SHORT = JobSpec.parse(DIGITS).replace({"search.trials": 2, "search.concurrency": 1, "train.epochs": 1})
DIVERGING = SHORT.replace(
    {
        "train.optimizer": {"name": "sgd", "lr": 1.0, "weight_decay": 10.0},
        "search.space": {"train.optimizer.lr": {"uniform": [90.0, 100.0]}},
    }
)
LONG = SHORT.replace({"train.epochs": 100})
"""Stopped and interrupted in its first trial, and then killed: each goes on where the one before ended."""


def finished(storage: Path) -> None:
    assert len(search(SHORT, runs=storage).trials) == 2


def failed(storage: Path) -> None:
    with pytest.raises(JobFailed, match="none of the 2 trials completed: 2 × diverged: train: the loss is") as caught:
        search(DIVERGING, runs=storage)
    assert caught.value.exit_code == 1


def stopped(storage: Path) -> None:
    def enough(epoch: TrialEpoch) -> None:
        raise StopSearch("after an epoch")

    found = search(LONG, runs=storage, on_epoch=enough)
    assert (found.trials, found.ended) == ((), "after an epoch")


def interrupted(storage: Path) -> None:
    def terminate(epoch: TrialEpoch) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        search(LONG, runs=storage, on_epoch=terminate)


ENDINGS = (finished, failed, stopped, interrupted)


def main(address: str, storage: Path) -> None:
    with connect(address, connect_timeout_s=CONNECT_TIMEOUT_S):
        for ending in ENDINGS:
            wait()
            ending(storage)
        wait()
        search(LONG, runs=storage)


def wait() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
