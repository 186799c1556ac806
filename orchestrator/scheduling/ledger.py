"""What is held when: free resources and quota in use now, and at each start that was promised.

A gang that starts now and ends at `end` must find room at `now` and at every promised start before `end`; between two
promised starts room only grows. So a few *moments* are all that has to be looked at.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.placing import Amounts, Bundle, capacities
from orchestrator.scheduling.quota import Needs, Quotas, allows
from orchestrator.scheduling.releases import Holding, Moment, Releases

NEVER = 1 << 61
"""The end of a gang without a time limit."""


class Ask(NamedTuple):
    """A gang that looks for room."""

    kind: int
    """The same for all of a project that ask for as much, for whatever time."""
    project: int
    bundle: Bundle
    workers: int
    needs: Needs
    length_ms: int | None

    def end(self, start_ms: int) -> int:
        # Later than the end of every gang: what may never end fits before no promised start.
        return NEVER + 1 if self.length_ms is None else start_ms + self.length_ms


class Ledger:
    """The working state of one pass. `take_now`, `promise` and `leaves_at` change it; all else looks.

    Args:
        releases: what runs now, and until when.
        soon_ms: the time that is asked for most.
    """

    def __init__(
        self, quotas: Quotas, now: Moment, releases: Iterable[tuple[int, Holding]], soon_ms: int | None = None
    ) -> None:
        self.quotas = quotas
        self._soon_ms = soon_ms
        self.now = now
        self.later: list[Moment] = []
        self._releases = {id(holding): (time_ms, holding) for time_ms, holding in releases}
        """What ends, in the order in which it came; a holding is the same one from its start to its end."""
        self._promises: dict[tuple[int, int], Moment] = {}
        """By start and end, with what all promises of these times hold together."""
        self._in_time = Releases(self._releases.values())
        self._soon: Moment | None = None
        self._room: dict[int, Amounts] = {}
        self._capacity: dict[tuple[bytes, int], tuple[int, NDArray[np.int64], int]] = {}
        self._touched: list[int] = []
        self._available: dict[tuple[int, int], list[int]] = {}
        self._starts: dict[tuple[int, int], tuple[bool, bool]] = {}
        self._counts: dict[int | None, int] = {}
        self.version = 0
        """Grows with every change."""
        self.moves = 0
        """Grows with every change of what is held when."""
        self.claimed_quota = np.zeros_like(now.usage)
        """Kept for jobs within nominal that wait for what others borrowed."""

    def moments_before(self, end_ms: int) -> int:
        """How many promised starts come before `end_ms`."""
        count = 0
        while count < len(self.later) and self.later[count].time_ms < end_ms:
            count += 1
        return count

    def _count(self, ask: Ask) -> int:
        """How many promised starts come before the end of the gang, were it started now."""
        count = self._counts.get(ask.length_ms)
        if count is None:
            count = self._counts[ask.length_ms] = self.moments_before(ask.end(self.now.time_ms))
        return count

    def starts(self, ask: Ask) -> tuple[bool, bool]:
        """Whether the quota has room from now until the gang's end, and if so, whether the nodes have."""
        key = (ask.kind, self._count(ask))
        found = self._starts.get(key)
        if found is None:
            allowed = self.allows(ask)
            fits = allowed and self._capacity_until(ask.bundle, key[1])[1] >= ask.workers
            found = self._starts[key] = (allowed, fits)
        return found

    def capacity(self, ask: Ask) -> NDArray[np.int64]:
        """Bundles that each node holds from now until the gang's end. Do not write into it."""
        return self._capacity_until(ask.bundle, self._count(ask))[0]

    def room_now(self, bundle: Bundle) -> int:
        """How many such bundles would fit this moment, were nothing promised."""
        return self._capacity_until(bundle, 0)[1]

    def _capacity_until(self, bundle: Bundle, count: int) -> tuple[NDArray[np.int64], int]:
        """By node and in all, until so many promised starts have come."""
        key = (bundle.key, count)
        seen, held, total = self._capacity.get(key, (-1, None, 0))
        if held is None:
            held = capacities(bundle, self._lowest(count))
        elif seen < len(self._touched):
            rows = np.array(sorted(set(self._touched[seen:])), np.int64)
            held[rows] = capacities(bundle, self._lowest(count)[rows])
        if seen < len(self._touched):
            total = int(held.sum())
            self._capacity[key] = (len(self._touched), held, total)
        return held, total

    def allows(self, ask: Ask) -> bool:
        """Whether the quota has room from now until the gang's end."""
        return allows(ask.needs, self.available(ask))

    def available(self, ask: Ask) -> list[int]:
        """What the project may use more, by resource, from now until the gang's end."""
        return self._available_until(ask.project, self._count(ask))

    def available_now(self, project: int) -> list[int]:
        """The same, whatever was promised."""
        return self._available_until(project, 0)

    def _available_until(self, project: int, count: int) -> list[int]:
        if (project, count) not in self._available:
            moments = (self.now, *self.later[:count])
            each = (self.quotas.available(project, moment.usage + self.claimed_quota) for moment in moments)
            self._available[project, count] = [min(column) for column in zip(*each, strict=True)]
        return self._available[project, count]

    def claim_quota(self, project: int, needs: Needs, count: int) -> None:
        """Nobody who comes later gets what `count` such gangs of the project need."""
        for column, need in needs:
            self.claimed_quota[project, column] += count * need
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._available.clear()
        self._starts.clear()

    def take_now(self, holding: Holding, end_ms: int) -> None:
        """A gang starts. One without a limit counts even where all others without a limit are thought to have ended."""
        for moment in (self.now, *self.later[: self.moments_before(end_ms + (end_ms == NEVER))]):
            moment.take(holding)
        if self._soon is not None and self._soon.time_ms < end_ms:
            self._soon.take(holding)
        self._release_at(holding, end_ms)
        self.moves += 1
        self._changed()
        self._touched += holding.rows.tolist()
        for count, lowest in self._room.items():
            lowest[holding.rows] = self._lowest_of(count, holding.rows)

    def _release_at(self, holding: Holding, time_ms: int) -> None:
        self._releases[id(holding)] = (time_ms, holding)
        self._in_time.add(time_ms, holding)

    def leaves_at(self, holding: Holding, before_ms: int, time_ms: int) -> None:
        """A gang that was expected to end at `before_ms` goes at `time_ms` already."""
        self._in_time.remove(*self._releases.pop(id(holding)))
        for moment in (*self.later, *([self._soon] if self._soon else [])):
            if time_ms <= moment.time_ms < before_ms:
                moment.take(holding, -1)
        self._release_at(holding, time_ms)
        self._forget()

    def promise(self, holding: Holding, start_ms: int, end_ms: int) -> None:
        """A start that nothing lower may delay."""
        new = all(moment.time_ms != start_ms for moment in self.later)
        if new:
            insort(self.later, self._made(start_ms), key=lambda moment: moment.time_ms)
        for moment in (*self.later, *([self._soon] if self._soon else [])):
            if start_ms <= moment.time_ms < end_ms:
                moment.take(holding)
        if new and start_ms >= NEVER:
            self._stay_beside(self.later[-1])
        if (start_ms, end_ms) not in self._promises:
            none = np.zeros_like(self.now.free), np.zeros_like(self.now.usage)
            self._promises[start_ms, end_ms] = Moment(start_ms, *none)
        self._promises[start_ms, end_ms].take(holding, -1)
        self._forget()

    def _stay_beside(self, moment: Moment) -> None:
        """Of the gangs without a limit only those must end that the promised start needs to: others are still there."""
        for time, holding in self._releases.values():
            if time >= NEVER and (moment.free[holding.rows] >= holding.held).all():
                moment.take(holding)

    def at(self, time_ms: int) -> Moment:
        """The state then, if nothing starts but what was promised. Do not write into it.

        `soon_ms` is asked for after every change, other times are not: that one is kept up to date.
        """
        if time_ms != self._soon_ms:
            return self._made(time_ms)
        if self._soon is None:
            self._soon = self._made(time_ms)
        return self._soon

    def _made(self, time_ms: int) -> Moment:
        moment = self._released(time_ms)
        for (start_ms, end_ms), promised in self._promises.items():
            if start_ms <= time_ms < end_ms:
                moment.free -= promised.free
                moment.usage -= promised.usage
        return moment

    def _released(self, time_ms: int) -> Moment:
        """The state then, if nothing starts."""
        moment = Moment(time_ms, self.now.free.copy(), self.now.usage.copy())
        self._in_time.release(time_ms, moment)
        return moment

    def room(self, ask: Ask, start_ms: int, without: Sequence[tuple[Holding, int]] = ()) -> "Room":
        """What a gang finds that starts at `start_ms`, once the holdings in `without` (with their ends) are gone."""
        last = self.moments_before(ask.end(start_ms))
        first = bisect_right(self.later, start_ms, key=lambda moment: moment.time_ms)
        room = Room(self, ask, [self.at(start_ms), *self.later[first:last]])
        room.give(without)
        return room

    def earliest(self, ask: Ask, until_ms: int) -> int | None:
        """When the gang fits, from the ends of what runs and is promised; NEVER: once those without a limit end.

        Exact as long as nothing is promised; then, of the times before the last promised start, the first 64 that are
        possible at all are looked at.
        """
        times = self._in_time.times
        times = sorted({*times[: bisect_right(times, until_ms)], *self._ends(until_ms)})
        settled = bisect_right(times, self.later[-1].time_ms) if self.later else 0
        unhindered = self._first(times, settled, len(times), ask)
        if settled:
            possible = self._first(times, 0, settled, ask, promises=False)
            for time in times[possible : min(settled, possible + 64)]:
                if self.room(ask, time).fits():
                    return time
        return times[unhindered] if unhindered < len(times) else None

    def _first(self, times: Sequence[int], low: int, high: int, ask: Ask, promises: bool = True) -> int:
        """By halving, where room only grows."""
        while low < high:
            middle = (low + high) // 2
            if promises:
                fits = self.room(ask, times[middle]).fits()
            else:
                fits = Room(self, ask, [self._released(times[middle])]).fits()
            low, high = (low, middle) if fits else (middle + 1, high)
        return low

    def _ends(self, until_ms: int) -> set[int]:
        return {end for _, end in self._promises if end <= until_ms}

    def _lowest(self, count: int) -> Amounts:
        if count == 0:
            return self.now.free
        if count not in self._room:
            self._room[count] = self._lowest_of(count, slice(None))
        return self._room[count]

    def _lowest_of(self, count: int, rows: NDArray[np.int64] | slice) -> Amounts:
        lowest: Amounts = self.now.free[rows].copy()
        for moment in self.later[:count]:
            np.minimum(lowest, moment.free[rows], out=lowest)
        return lowest

    def _forget(self) -> None:
        self._room.clear()
        self._capacity.clear()
        self._touched.clear()
        self._counts.clear()
        self.moves += 1
        self._changed()


class Room:
    """What a gang would find at a start and at the promised starts until its end, while victims come and go."""

    def __init__(self, ledger: Ledger, ask: Ask, moments: Sequence[Moment]) -> None:
        self._quotas = ledger.quotas
        self._claimed = ledger.claimed_quota
        self._ask = ask
        self._times = [moment.time_ms for moment in moments]
        self._free = np.stack([moment.free for moment in moments])
        self._usage = np.stack([moment.usage for moment in moments])
        self.capacity = capacities(ask.bundle, self._free.min(axis=0))
        self.total = int(self.capacity.sum())

    def fits(self) -> bool:
        return self.total >= self._ask.workers and all(
            allows(self._ask.needs, self._quotas.available(self._ask.project, usage + self._claimed))
            for usage in self._usage
        )

    def give(self, holdings: Iterable[tuple[Holding, int]], sign: int = 1) -> None:
        """Holdings that end at the given times are gone from the start on (sign −1: they are there after all)."""
        touched: set[int] = set()
        for holding, end_ms in holdings:
            for index, time in enumerate(self._times):
                if time < end_ms:
                    self._free[index, holding.rows] += sign * holding.held
                    self._usage[index, holding.project] -= sign * holding.total
            touched.update(holding.rows.tolist())
        if touched:
            rows = np.array(sorted(touched), np.int64)
            self.capacity[rows] = capacities(self._ask.bundle, self._free[:, rows].min(axis=0))
            self.total = int(self.capacity.sum())
