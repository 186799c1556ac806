"""Whom a job may ask to leave, and whom it does.

Within its project: gangs of lower priority. Across projects of its pool, if it stays within nominal itself: gangs of
projects that borrow, as long as they still do. None that would come before it again once it waits: neither a gang
within nominal for a job that borrows, nor one within nominal of no lower priority. Order: other projects first, then
lowest priority, then newest. They are added until the job fits, then those that were not needed are dropped in
reverse: no smaller part would do.
"""

from bisect import bisect_left
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import Ask, Ledger, Room
from orchestrator.scheduling.placing import Amounts, capacities
from orchestrator.scheduling.quota import allows
from orchestrator.scheduling.records import Job
from orchestrator.scheduling.releases import Moment
from orchestrator.scheduling.standing import Running, Standing

_FEW = 16


def _in_turn(one: Running) -> tuple[int, int, str]:
    return one.gang.job.priority, -one.gang.started_ms, one.gang.job.id


class Taken(NamedTuple):
    """What all that a job could ask to leave hold together."""

    running: list[Running]
    free: Amounts
    """(nodes, resources)"""
    usage: Amounts
    """(projects, resources)"""


class Victims:
    """The search for victims, with what all jobs of a project and priority have in common kept."""

    def __init__(self, books: Books, standing: Standing, ledger: Ledger) -> None:
        self._books = books
        self._standing = standing
        self._ledger = ledger
        self._by_project: dict[int, list[Running]] = defaultdict(list)
        for one in sorted(standing.running, key=_in_turn):
            if one.gang.leaving_since_ms is None:
                self._by_project[one.holding.project].append(one)
        self._could: dict[tuple[int, int, bool], tuple[int, bool]] = {}
        self._taken: dict[tuple[int, int, bytes | None], Taken] = {}
        self._soon: tuple[int, Moment] | None = None

    def gone(self, chosen: list[Running]) -> None:
        """They were told to leave: nobody else's victims."""
        for victim in chosen:
            self._by_project[victim.holding.project].remove(victim)
        self._taken.clear()
        self._could.clear()

    def could(self, job: Job, ask: Ask, reclaims: bool) -> bool:
        """Whether there is anything to take and the job would have room if it took it all. Cheap when not."""
        key = (ask.kind, job.priority, reclaims)
        version, could = self._could.get(key, (-1, False))
        if version != self._ledger.version:
            could = self._would_fit(ask, self._all_taken(job, ask, reclaims))
            self._could[key] = (self._ledger.version, could)
        return could

    def _would_fit(self, ask: Ask, taken: Taken) -> bool:
        ledger = self._ledger
        if not taken.running:
            return False
        if self._soon is None or self._soon[0] != ledger.moves:
            self._soon = ledger.moves, ledger.at(self._books.soon_ms)
        soon = self._soon[1]
        usage = soon.usage - taken.usage + ledger.claimed_quota
        if not allows(ask.needs, self._books.quotas.available(ask.project, usage)):
            return False
        return int(capacities(ask.bundle, soon.free + taken.free).sum()) >= ask.workers

    def choose(self, job: Job, ask: Ask, reclaims: bool) -> tuple[list[Running], Room] | None:
        """Victims, and the room that the job then has; None when even all of them would not do."""
        candidates = self._all_taken(job, ask, reclaims).running
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

    def _all_taken(self, job: Job, ask: Ask, reclaims: bool) -> Taken:
        key = (ask.project, job.priority, ask.bundle.kinds if reclaims else None)
        if key not in self._taken:
            found = self._from_others(job, ask) if reclaims else []
            if self._books.quotas.projects[ask.project].preempt_within == "lower_priority":
                own = self._by_project[ask.project]
                found += own[: bisect_left(own, job.priority, key=lambda one: one.gang.job.priority)]
            free, usage = np.zeros_like(self._books.totals), self._books.no_usage()
            if found:
                holdings = [one.holding for one in found]
                rows, held = (np.concatenate([holding[i] for holding in holdings]) for i in (1, 2))
                np.add.at(free, rows, held)
                owners = np.array([holding.project for holding in holdings])
                np.add.at(usage, owners, np.array([holding.total for holding in holdings]))
            self._taken[key] = Taken(found, free, usage)
        return self._taken[key]

    def _from_others(self, job: Job, ask: Ask) -> list[Running]:
        quotas, staying = self._books.quotas, self._standing.staying
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
        return sorted(found, key=_in_turn)

    def _greedy(self, job: Job, ask: Ask, candidates: list[Running]) -> tuple[list[Running], Room] | None:
        books = self._books
        room = self._ledger.room(ask, books.soon_ms)
        staying = [list(row) for row in self._standing.staying]
        chosen: list[Running] = []
        for candidate in candidates:
            project = candidate.holding.project
            if project != ask.project and not books.quotas.borrows(project, staying[project], ask.needs):
                continue
            chosen.append(candidate)
            for column, amount in books.needs(candidate.gang.job.demand):
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

    def _stay_behind(self, job: Job, ask: Ask, chosen: list[Running]) -> bool:
        """Whether all victims come after the job in the order that they will wait in.

        Otherwise one could be started again first, if the victims leave late and the claim on their places is dropped.
        """
        books, staying, within = self._books, self._standing.staying, self._books.quotas.within_nominal
        rest = {victim.holding.project: list(staying[victim.holding.project]) for victim in chosen}
        rest.setdefault(ask.project, list(staying[ask.project]))
        for victim in chosen:
            for column, amount in books.needs(victim.gang.job.demand):
                rest[victim.holding.project][column] -= amount
        owns = within(ask.project, ask.needs, rest[ask.project])
        return not any(
            within(victim.holding.project, books.needs(victim.gang.job.demand), rest[victim.holding.project])
            and (not owns or victim.gang.job.priority >= job.priority)
            for victim in chosen
        )
