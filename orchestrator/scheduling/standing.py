"""What runs, kept from pass to pass, and the ledger that a pass writes into."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import NEVER, Ledger
from orchestrator.scheduling.placing import Amounts, Bundle
from orchestrator.scheduling.records import Gang
from orchestrator.scheduling.releases import Holding, Moment


class Running(NamedTuple):
    gang: Gang
    holding: Holding
    end_ms: int
    """When it is expected to end."""


class Standing:
    """The live gangs, and what projects use and borrow: it changes as decisions are made, from pass to pass."""

    def __init__(self, books: Books, gangs: Iterable[Gang]) -> None:
        self._books = books
        self._free, self._usage, staying = books.idle.copy(), books.no_usage(), books.no_usage()
        self._shares: dict[int, int] = {}
        self._running = {one.gang.job.id: one for one in self._charge(list(gangs), staying)}
        self._leaving: dict[int, list[str]] = defaultdict(list)
        for one in self._running.values():
            if one.gang.leaving_since_ms is not None:
                self._note_leaving(one)
        self.staying: list[list[int]] = staying.tolist()
        """Use by project of the gangs that were not told to leave."""

    def leaving_from(self, rows: Iterable[int]) -> set[str]:
        """The jobs that were told to leave and hold something on one of these nodes."""
        return {job for row in rows for job in self._leaving.get(row, ())}

    @property
    def running(self) -> list[Running]:
        """In the order of their jobs' ids."""
        return [self._running[name] for name in sorted(self._running)]

    def ledger(self) -> Ledger:
        """For one pass, which writes into it."""
        now = Moment(self._books.now_ms, self._free.copy(), self._usage.copy())
        return Ledger(self._books.quotas, now, [(one.end_ms, one.holding) for one in self.running], self._books.soon_ms)

    def start(self, gang: Gang, holding: Holding) -> None:
        self._running[gang.job.id] = Running(gang, holding, self._end(gang))
        self._free[holding.rows] -= holding.held
        self._usage[holding.project] += holding.total
        self._stay(gang, holding, 1)

    def leave(self, one: Running) -> None:
        """It is told to: until it is gone it holds what it has."""
        gang = replace(one.gang, leaving_since_ms=self._books.now_ms)
        self._running[gang.job.id] = Running(gang, one.holding, self._end(gang))
        self._note_leaving(one)
        self._stay(gang, one.holding, -1)

    def _note_leaving(self, one: Running) -> None:
        for row in one.holding.rows.tolist():
            self._leaving[row].append(one.gang.job.id)

    def _stay(self, gang: Gang, holding: Holding, sign: int) -> None:
        for column, need in self._books.needs(gang.job.demand):
            self.staying[holding.project][column] += sign * need
        self._shares.pop(holding.project, None)

    def share(self, project: int) -> int:
        """The project's borrowed share of the cluster, from what stays and starts."""
        if project not in self._shares:
            books = self._books
            self._shares[project] = books.quotas.share(project, self.staying[project], books.cluster)
        return self._shares[project]

    def _charge(self, gangs: list[Gang], staying: Amounts) -> list[Running]:
        """What each gang holds is a part of arrays that are made, and charged, for all at once."""
        books = self._books
        if not gangs:
            return []
        rows: list[int] = []
        counts: list[int] = []
        bounds = [0]
        for gang in gangs:
            # A node that no longer answers is not in the snapshot; the quota stays charged until the gang is gone.
            for name, count in (Counter(gang.placement) if len(gang.placement) > 1 else {gang.placement[0]: 1}).items():
                if name in books.node_of:
                    rows.append(books.node_of[name])
                    counts.append(count)
            bounds.append(len(rows))
        bundles = [self._bundle(gang) for gang in gangs]
        vectors = np.array([bundle.vector for bundle in bundles])
        at = np.array(rows, np.int64)
        held = np.array(counts, np.int64)[:, None] * np.repeat(vectors, np.diff(bounds), axis=0)
        totals = np.array([[gang.job.demand.workers] for gang in gangs]) * vectors
        owners = [books.project_of[gang.job.project] for gang in gangs]
        projects, stays = np.array(owners), np.array([gang.leaving_since_ms is None for gang in gangs])
        np.subtract.at(self._free, at, held)
        np.add.at(self._usage, projects, totals)
        np.add.at(staying, projects[stays], totals[stays])
        return [
            Running(gang, Holding(owner, at[first:last], held[first:last], total), self._end(gang))
            for gang, owner, (first, last), total in zip(gangs, owners, pairwise(bounds), totals, strict=True)
        ]

    def _bundle(self, gang: Gang) -> Bundle:
        bundle = self._books.bundle(gang.job.demand)
        if bundle is None:
            raise ValueError(f"job {gang.job.id} holds what nothing has: {gang.job.demand}")
        return bundle

    def _end(self, gang: Gang) -> int:
        grace_ms = self._books.soon_ms - self._books.now_ms
        end_ms = NEVER if gang.job.limit_ms is None else gang.started_ms + gang.job.limit_ms
        late_ms = end_ms + grace_ms
        if gang.leaving_since_ms is not None:
            late_ms = gang.leaving_since_ms + grace_ms
            end_ms = min(end_ms, late_ms) if end_ms > self._books.now_ms else late_ms
        # What should have gone long ago cannot be relied on: it may be on a node that does not answer.
        return NEVER if late_ms <= self._books.now_ms else max(end_ms, self._books.now_ms + 1)
