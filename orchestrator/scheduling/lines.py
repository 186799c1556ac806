"""The order of the queue: who is looked at next.

Jobs that stay within their project's nominal quota come before those that would borrow, since what is lent can be taken
back: started the other way round, the borrower would be evicted at once. Then priority, then the fair share of the
project, then the time of submission, then the id.

Jobs of one project with the same priority, demand and time limit form a *line*: if its head does not fit, none does. So
the work of a decision grows with the number of lines, not of jobs.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import Ask
from orchestrator.scheduling.records import Job, Pending

Key = tuple[bool, int, int, int, str]

_alike = attrgetter("job.project", "job.priority", "job.limit_ms", "job.demand.workers", "job.demand.bundle")
_in_turn = attrgetter("job.submitted_ms", "job.id")


@dataclass(eq=False)
class Line:
    jobs: list[Pending]
    """Oldest first."""
    ask: Ask
    served: int = 0

    @property
    def head(self) -> Pending:
        return self.jobs[self.served]


def alike(pending: Iterable[Pending]) -> list[list[Pending]]:
    """Jobs grouped by all that a decision looks at, each group oldest first."""
    groups: dict[tuple[object, ...], list[Pending]] = {}
    for one in sorted(pending, key=_in_turn):
        groups.setdefault(_alike(one), []).append(one)
    return list(groups.values())


def still_alike(groups: Iterable[list[Pending]], pending: Iterable[Pending]) -> list[list[Pending]]:
    """The groups without those that wait no longer: what `alike` would give, in less time."""
    by_id = {one.job.id: one for one in pending}
    left = ([by_id[one.job.id] for one in group if one.job.id in by_id] for group in groups)
    return [group for group in left if group]


class Lines:
    """All lines; iterating gives the one whose head is next, until each is closed or served."""

    def __init__(self, books: Books, lines: Iterable[Line]) -> None:
        self._books = books
        self.spoken_for = [list(row) for row in books.staying]
        """Use by project, with what its jobs within nominal wait for."""
        self._stamps = [0] * len(self.spoken_for)
        self._heap = [(self._key(line), index, line, 0) for index, line in enumerate(lines)]
        heapq.heapify(self._heap)

    def within_nominal(self, ask: Ask) -> bool:
        return self._books.quotas.within_nominal(ask.project, ask.needs, self.spoken_for[ask.project])

    def speak_for(self, ask: Ask, count: int = 1) -> None:
        own = self.spoken_for[ask.project]
        for column, need in ask.needs:
            own[column] += count * need
        self._stamps[ask.project] += 1

    def speak_within_nominal(self, ask: Ask, most: int) -> int:
        """Of jobs alike, as many as stay within nominal together are spoken for: their number."""
        own = self._books.quotas.how_many_within_nominal(ask.project, ask.needs, self.spoken_for[ask.project], most)
        if own:
            self.speak_for(ask, own)
        return own

    def put_back(self, line: Line) -> None:
        if line.served < len(line.jobs):
            heapq.heappush(self._heap, (self._key(line), len(self._heap), line, self._stamps[line.ask.project]))

    def __iter__(self) -> Iterator[Line]:
        # What a project uses grows while jobs start, so keys grow: a line that is no longer first goes back.
        while self._heap:
            key, index, line, stamp = heapq.heappop(self._heap)
            newest = self._stamps[line.ask.project]
            if stamp != newest:
                current = self._key(line)
                if current > key and self._heap and self._heap[0][0] < current:
                    heapq.heappush(self._heap, (current, index, line, newest))
                    continue
            yield line

    def _key(self, line: Line) -> Key:
        job: Job = line.head.job
        share = self._books.share(line.ask.project)
        return not self.within_nominal(line.ask), -job.priority, share, job.submitted_ms, job.id
