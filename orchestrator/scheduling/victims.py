"""Whom a job may ask to leave, and whom it does.

Within its project: gangs of lower priority. Across projects of its pool, if it stays within nominal itself: gangs of
projects that borrow, as long as they still do. None that would come before it again once it waits: neither a gang
within nominal for a job that borrows, nor one within nominal of no lower priority. Order: other projects first, then
lowest priority, then newest. They are added until the job fits, then those that were not needed are dropped in
reverse: no smaller part would do.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import Ask, Holding, Room
from orchestrator.scheduling.placing import Amounts, capacities
from orchestrator.scheduling.quota import allows
from orchestrator.scheduling.records import Gang, Job

_FEW = 16


@dataclass(frozen=True)
class Candidate:
    gang: Gang
    holding: Holding
    end_ms: int


class Victims:
    """The search for victims, with what all jobs of a project and priority have in common kept."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._by_project: dict[int, list[Candidate]] = defaultdict(list)
        for gang, holding, end_ms in books.gangs:
            if gang.leaving_since_ms is None:
                self._by_project[holding.project].append(Candidate(gang, holding, end_ms))
        for candidates in self._by_project.values():
            candidates.sort(key=lambda c: (c.gang.job.priority, -c.gang.started_ms, c.gang.job.id))
        self._most: dict[tuple[int, int, bool, bytes, int], tuple[int, list[int]]] = {}
        self._all: dict[tuple[int, int, bytes | None], tuple[list[Candidate], Amounts]] = {}

    def gone(self, chosen: list[Candidate]) -> None:
        """They were told to leave: nobody else's victims."""
        for victim in chosen:
            self._by_project[victim.holding.project].remove(victim)
        self._all.clear()

    def could(self, job: Job, ask: Ask, reclaims: bool) -> bool:
        """Whether there is anything to take and the job would have room if it took it all. Cheap when not."""
        candidates, given = self._candidates(job, ask, reclaims)
        if not candidates:
            return False
        ledger = self._books.ledger
        key = (ask.project, job.priority, reclaims, ask.bundle.key, ledger.version)
        if key not in self._most:
            soon = ledger.at(self._books.soon_ms)
            for candidate in candidates:
                soon.usage[candidate.holding.project] -= candidate.holding.total
            available = self._books.quotas.available(ask.project, soon.usage + ledger.claimed_quota)
            self._most[key] = int(capacities(ask.bundle, soon.free + given).sum()), available
        room, available = self._most[key]
        return room >= ask.workers and allows(ask.needs, available)

    def choose(self, job: Job, ask: Ask, reclaims: bool) -> tuple[list[Candidate], Room] | None:
        """Victims, and the room that the job then has; None when even all of them would not do."""
        candidates, _ = self._candidates(job, ask, reclaims)
        found = self._greedy(job, ask, candidates)
        if found is None and 1 < len(candidates) <= _FEW:
            # The order may spend what a borrower owes on gangs that do not help: then others first, the largest before.
            columns, amounts = ask.bundle.columns, ask.bundle.amounts
            helps = [int((1000 * c.holding.held[:, columns] // amounts).sum()) for c in candidates]
            largest = sorted(range(len(candidates)), key=lambda i: (-helps[i], i))
            orders = [largest] + [[first, *(i for i in range(len(candidates)) if i != first)] for first in largest]
            found = next(
                filter(None, (self._greedy(job, ask, [candidates[i] for i in order]) for order in orders)), None
            )
        return found

    def _candidates(self, job: Job, ask: Ask, reclaims: bool) -> tuple[list[Candidate], Amounts]:
        """In order, with what they hold together (nodes, resources)."""
        key = (ask.project, job.priority, ask.bundle.kinds if reclaims else None)
        if key not in self._all:
            found = self._from_others(job, ask) if reclaims else []
            if self._books.quotas.projects[ask.project].preempt_within == "lower_priority":
                found += [c for c in self._by_project[ask.project] if c.gang.job.priority < job.priority]
            given = np.zeros_like(self._books.totals)
            if found:
                rows = np.concatenate([c.holding.rows for c in found])
                np.add.at(given, rows, np.concatenate([c.holding.held for c in found]))
            self._all[key] = (found, given)
        return self._all[key]

    def _from_others(self, job: Job, ask: Ask) -> list[Candidate]:
        quotas, staying = self._books.quotas, self._books.staying
        policy = quotas.projects[ask.project].reclaim
        if policy == "never":
            return []
        found = [
            candidate
            for project, candidates in self._by_project.items()
            if project != ask.project
            and quotas.pool[project] == quotas.pool[ask.project]
            and quotas.borrows(project, staying[project], ask.needs)
            for candidate in candidates
            if (policy == "any" or candidate.gang.job.priority < job.priority)
            and any(candidate.holding.total[column] > 0 for column, _ in ask.needs)
        ]
        return sorted(found, key=lambda c: (c.gang.job.priority, -c.gang.started_ms, c.gang.job.id))

    def _greedy(self, job: Job, ask: Ask, candidates: list[Candidate]) -> tuple[list[Candidate], Room] | None:
        books = self._books
        room = books.ledger.room(ask, books.soon_ms)
        staying = [list(row) for row in books.staying]
        chosen: list[Candidate] = []
        for candidate in candidates:
            project = candidate.holding.project
            if project != ask.project and not books.quotas.borrows(project, staying[project], ask.needs):
                continue
            chosen.append(candidate)
            for column, amount in books.needs(candidate.gang):
                staying[project][column] -= amount
            room.give([(candidate.holding, candidate.end_ms)])
            if room.fits():
                break
        else:
            return None
        for candidate in reversed(chosen[:-1]):
            room.give([(candidate.holding, candidate.end_ms)], -1)
            if room.fits():
                chosen.remove(candidate)
            else:
                room.give([(candidate.holding, candidate.end_ms)])
        return (chosen, room) if self._stay_behind(job, ask, chosen) else None

    def _stay_behind(self, job: Job, ask: Ask, chosen: list[Candidate]) -> bool:
        """Whether all victims come after the job in the order that they will wait in.

        Otherwise one could be started again first, if the victims leave late and the claim on their places is dropped.
        """
        books, within = self._books, self._books.quotas.within_nominal
        rest = {victim.holding.project: list(books.staying[victim.holding.project]) for victim in chosen}
        rest.setdefault(ask.project, list(books.staying[ask.project]))
        for victim in chosen:
            for column, amount in books.needs(victim.gang):
                rest[victim.holding.project][column] -= amount
        owns = within(ask.project, ask.needs, rest[ask.project])
        return not any(
            within(victim.holding.project, books.needs(victim.gang), rest[victim.holding.project])
            and (not owns or victim.gang.job.priority >= job.priority)
            for victim in chosen
        )
