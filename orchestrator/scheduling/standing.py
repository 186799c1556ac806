"""What runs at the start of a pass, and the ledger that the pass writes into."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import NEVER, Holding, Ledger, Moment
from orchestrator.scheduling.placing import Amounts
from orchestrator.scheduling.quota import Needs
from orchestrator.scheduling.records import Gang


class Running(NamedTuple):
    gang: Gang
    holding: Holding
    end_ms: int
    """When it is expected to end."""


class Standing:
    """The live gangs in the order of their jobs' ids; what projects use and borrow, while the pass goes on."""

    def __init__(self, books: Books, gangs: Iterable[Gang]) -> None:
        self.books = books
        self._gangs = sorted(gangs, key=lambda gang: gang.job.id)
        self._shares: dict[int, int] = {}
        now, staying = Moment(books.now_ms, books.idle.copy(), books.no_usage()), books.no_usage()
        holdings = self._charge(now, staying)
        self.staying: list[list[int]] = staying.tolist()
        """Use by project of the gangs that were not told to leave, and of those that start in this pass."""
        self.running = [Running(*one, self._end(one[0])) for one in zip(self._gangs, holdings, strict=True)]
        self.ledger = Ledger(books.quotas, now, [(one.end_ms, one.holding) for one in self.running])

    def _charge(self, now: Moment, staying: Amounts) -> list[Holding]:
        """What each gang holds: parts of arrays that are made, and charged, for all at once."""
        books, gangs = self.books, self._gangs
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
        vectors = np.array([self._vector(gang) for gang in gangs])
        at = np.array(rows, np.int64)
        held = np.array(counts, np.int64)[:, None] * np.repeat(vectors, np.diff(bounds), axis=0)
        totals = np.array([[gang.job.demand.workers] for gang in gangs]) * vectors
        owners = [books.project_of[gang.job.project] for gang in gangs]
        projects, stays = np.array(owners), np.array([gang.leaving_since_ms is None for gang in gangs])
        np.subtract.at(now.free, at, held)
        np.add.at(now.usage, projects, totals)
        np.add.at(staying, projects[stays], totals[stays])
        parts = zip(owners, pairwise(bounds), totals, strict=True)
        return [Holding(owner, at[first:last], held[first:last], total) for owner, (first, last), total in parts]

    def _vector(self, gang: Gang) -> Amounts:
        bundle = self.books.bundle(gang.job.demand)
        if bundle is None:
            raise ValueError(f"job {gang.job.id} holds what nothing has: {gang.job.demand}")
        return bundle.vector

    def _end(self, gang: Gang) -> int:
        grace_ms = self.books.soon_ms - self.books.now_ms
        end_ms = NEVER if gang.job.limit_ms is None else gang.started_ms + gang.job.limit_ms
        late_ms = end_ms + grace_ms
        if gang.leaving_since_ms is not None:
            late_ms = gang.leaving_since_ms + grace_ms
            end_ms = min(end_ms, late_ms) if end_ms > self.books.now_ms else late_ms
        # What should have gone long ago cannot be relied on: it may be on a node that does not answer.
        return NEVER if late_ms <= self.books.now_ms else max(end_ms, self.books.now_ms + 1)

    def share(self, project: int) -> int:
        """The project's borrowed share of the cluster, from what stays and starts."""
        if project not in self._shares:
            books = self.books
            self._shares[project] = books.quotas.share(project, self.staying[project], books.cluster)
        return self._shares[project]

    def stays(self, project: int, needs: Needs, sign: int = 1) -> None:
        """A gang starts, or (sign −1) is told to leave."""
        for column, need in needs:
            self.staying[project][column] += sign * need
        self._shares.pop(project, None)
