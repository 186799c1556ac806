"""Shares put together in order, whoever is done first, and nobody waits for ever."""

from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import exchange
from jobs.context import LocalContext
from jobs.errors import Interrupted, JobFailed, StorageError
from jobs.exchange import Exchange, share


@dataclass
class Stopped(LocalContext):
    def stop_requested(self) -> bool:
        return True


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_everything_once_and_even(count: int, shares: int) -> None:
    parts = [share(count, index, shares) for index in range(shares)]
    assert [each for part in parts for each in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_come_together_in_the_order_of_the_workers(tmp_path: Path) -> None:
    meeting = Exchange(tmp_path / "shares", 3)
    values = np.arange(12.0).reshape(6, 2)
    meeting.give(2, {"a": values[4:], "b": values[5:, ::-1]})
    meeting.give(1, {})
    meeting.give(0, {"a": values[:4]})
    meeting.wait(LocalContext(), own_s=0.0)
    np.testing.assert_array_equal(meeting.arrays("a"), values)
    np.testing.assert_array_equal(meeting.arrays("b"), [[11.0, 10.0]])
    with pytest.raises(StorageError, match="'c'"):
        meeting.arrays("c")


def test_late_parts_are_waited_for(tmp_path: Path) -> None:
    meeting = Exchange(tmp_path, 2)
    meeting.give(0, {"a": np.zeros(1)})
    late = Thread(target=lambda: meeting.give(1, {"a": np.ones(1)}))
    late.start()
    meeting.wait(LocalContext(), own_s=0.0)
    assert meeting.arrays("a").tolist() == [0.0, 1.0]
    late.join()


def test_waiting_ends_with_a_stop_or_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Exchange(tmp_path, 2)
    meeting.give(0, {})
    with pytest.raises(Interrupted):
        meeting.wait(Stopped(), own_s=0.0)
    monkeypatch.setattr(exchange, "TIMEOUT_S", 0.05)
    with pytest.raises(JobFailed, match="worker 1"):
        meeting.wait(LocalContext(), own_s=0.001)


def test_parts_that_are_missing_or_cut_off_are_errors(tmp_path: Path) -> None:
    meeting = Exchange(tmp_path, 2)
    meeting.give(0, {"a": np.zeros(100)})
    with pytest.raises(StorageError, match="worker 1"):
        meeting.arrays("a")
    (part,) = tmp_path.iterdir()
    meeting.give(1, {})
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(StorageError, match="worker 0"):
        meeting.arrays("a")
