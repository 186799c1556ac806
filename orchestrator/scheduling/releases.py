"""What gangs hold, and what comes back when they end."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.placing import Amounts, Bundle

_FEW = 64
"""Releases that came or went since: up to so many are gone through one by one."""

Places = list[tuple[int, int]]
"""(node, bundles on it)."""


class Holding(NamedTuple):
    """What a gang holds: `rows` are its nodes, `held` (rows, resources) what it has on each."""

    project: int
    rows: NDArray[np.int64]
    held: Amounts
    total: Amounts

    @classmethod
    def of(cls, project: int, bundle: Bundle, workers: int, places: Places) -> "Holding":
        rows = np.array([node for node, _ in places], np.int64)
        counts = np.array([count for _, count in places], np.int64)
        return cls(project, rows, counts[:, None] * bundle.vector, workers * bundle.vector)


@dataclass
class Moment:
    """The state at a point of time, with all that is promised by then."""

    time_ms: int
    free: Amounts
    usage: Amounts

    def take(self, holding: Holding, sign: int = 1) -> None:
        self.free[holding.rows] -= sign * holding.held
        self.usage[holding.project] += sign * holding.total


class Releases:
    """Releases in the order of time, so that many are added in one step.

    What came or went since is kept beside, and worked in once there is more than a little of it; what went stays, with
    its opposite.
    """

    def __init__(self, releases: Iterable[tuple[int, Holding]]) -> None:
        ordered = sorted(releases, key=lambda one: one[0])
        self.times = [time for time, _ in ordered]
        """Of all of them; several may end at one time."""
        self._since = [(time, holding, 1) for time, holding in ordered]
        self._gangs: tuple[NDArray[np.int64], ...] = ()
        """(time), (project), (resources) of each."""
        self._places: tuple[NDArray[np.int64], ...] = ()
        """(time), (node), (resources) of each place."""
        self._work_in()

    def add(self, time_ms: int, holding: Holding) -> None:
        insort(self.times, time_ms)
        self._note(time_ms, holding, 1)

    def remove(self, time_ms: int, holding: Holding) -> None:
        del self.times[bisect_left(self.times, time_ms)]
        self._note(time_ms, holding, -1)

    def _note(self, time_ms: int, holding: Holding, sign: int) -> None:
        self._since.append((time_ms, holding, sign))
        if len(self._since) > _FEW:
            self._work_in()

    def _work_in(self) -> None:
        if not self._since:
            return
        times = np.array([time for time, _, _ in self._since], np.int64)
        sizes = [len(holding.rows) for _, holding, _ in self._since]
        gangs = (
            times,
            np.array([holding.project for _, holding, _ in self._since], np.int64),
            np.array([sign * holding.total for _, holding, sign in self._since]),
        )
        places = (
            np.repeat(times, sizes),
            np.concatenate([holding.rows for _, holding, _ in self._since]),
            np.concatenate([sign * holding.held for _, holding, sign in self._since]),
        )
        self._gangs, self._places = _merged(self._gangs, gangs), _merged(self._places, places)
        self._since = []

    def release(self, time_ms: int, moment: Moment) -> None:
        """Puts back what ends by then."""
        if self._gangs:
            (times, projects, totals), (ends, rows, held) = self._gangs, self._places
            gangs, places = (int(np.searchsorted(each, time_ms, side="right")) for each in (times, ends))
            np.add.at(moment.free, rows[:places], held[:places])
            np.subtract.at(moment.usage, projects[:gangs], totals[:gangs])
        for time, holding, sign in self._since:
            if time <= time_ms:
                moment.take(holding, -sign)


def _merged(old: tuple[NDArray[np.int64], ...], new: tuple[NDArray[np.int64], ...]) -> tuple[NDArray[np.int64], ...]:
    """Columns put together in the order of the first one."""
    columns = [np.concatenate(pair) for pair in zip(old, new, strict=True)] if old else new
    order = np.argsort(columns[0], kind="stable")
    return tuple(column[order] for column in columns)
