"""The order of the queue: who is looked at next.

Jobs that stay within their project's nominal quota come before those that would borrow, since what is lent can be taken
back: started the other way round, the borrower would be evicted at once. Then priority, then the fair share of the
project, then the time of submission, then the id.

Jobs of one project with the same priority, demand and time limit form a *line*: if its head does not fit, none does. So
the work of a decision grows with the number of lines, not of jobs.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from orchestrator.scheduling.ledger import Ask
from orchestrator.scheduling.quota import Quotas
from orchestrator.scheduling.records import Job, Pending
from orchestrator.scheduling.standing import Standing

Key = tuple[bool, int, int, int, str]

in_turn = attrgetter("job.submitted_ms", "job.id")


@dataclass(eq=False)
class Line:
    jobs: list[Pending]
    """Oldest first."""
    ask: Ask
    served: int = 0

    @property
    def head(self) -> Pending:
        return self.jobs[self.served]


def kind(job: Job) -> tuple[object, ...]:
    """All that a decision looks at, but for the job's age."""
    return job.project, job.priority, job.limit_ms, job.demand.workers, job.demand.bundle


def alike(pending: Iterable[Pending]) -> list[list[Pending]]:
    """Jobs of one kind together; oldest first, among kinds and within each."""
    groups: dict[tuple[object, ...], list[tuple[int, str, Pending]]] = defaultdict(list)
    for one in pending:
        job = one.job
        groups[kind(job)].append((job.submitted_ms, job.id, one))
    for group in groups.values():
        group.sort()
    return [[one for _, _, one in group] for group in sorted(groups.values())]


class Lines:
    """All lines; iterating gives the one whose head is next, until each is closed or served."""

    def __init__(self, quotas: Quotas, standing: Standing, lines: Iterable[Line]) -> None:
        self._quotas = quotas
        self._standing = standing
        self.spoken_for = [list(row) for row in standing.staying]
        """Use by project, with what its jobs within nominal wait for."""
        self._stamps = [0] * len(self.spoken_for)
        self._heap = [(self._key(line), index, line, 0) for index, line in enumerate(lines)]
        heapq.heapify(self._heap)

    def within_nominal(self, ask: Ask) -> bool:
        return self._quotas.within_nominal(ask.project, ask.needs, self.spoken_for[ask.project])

    def speak_for(self, ask: Ask, count: int = 1) -> None:
        own = self.spoken_for[ask.project]
        for column, need in ask.needs:
            own[column] += count * need
        self._stamps[ask.project] += 1

    def speak_within_nominal(self, ask: Ask, most: int) -> int:
        """Of jobs alike, as many as stay within nominal together are spoken for: their number."""
        own = self._quotas.how_many_within_nominal(ask.project, ask.needs, self.spoken_for[ask.project], most)
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
        ask, job = line.ask, line.jobs[line.served].job
        own = self._quotas.within_nominal(ask.project, ask.needs, self.spoken_for[ask.project])
        return not own, -job.priority, self._standing.share(ask.project), job.submitted_ms, job.id
