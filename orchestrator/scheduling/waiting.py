"""Who waits, from pass to pass: jobs that could be started, in lines, and jobs that have a claim."""

from bisect import insort
from collections.abc import Iterable, Mapping

from orchestrator.scheduling.admission import fits_idle, infeasible
from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import Ask
from orchestrator.scheduling.lines import Line, alike, in_turn, kind
from orchestrator.scheduling.reasons import clock
from orchestrator.scheduling.records import Pending, Refuse, Wait


class Waiting:
    """`refused` and `waits` is what needs no pass to be known: whose time has not come, and what fits nowhere."""

    def __init__(self, books: Books, pending: Iterable[Pending]) -> None:
        self._books = books
        self._fits: dict[int, bool] = {}
        self._lines: dict[tuple[object, ...], Line] = {}
        self.claiming: list[tuple[Pending, Ask]] = []
        self.refused: list[Refuse] = []
        self.waits: list[Wait] = []
        for group in alike(pending):
            ask = self._feasible(group)
            if ask is not None:
                self._lines[kind(group[0].job)] = Line(self._ready(group, ask), ask)

    def _feasible(self, group: list[Pending]) -> Ask | None:
        job = group[0].job
        ask = self._books.ask(job)
        if ask is not None:
            if ask.kind not in self._fits:
                self._fits[ask.kind] = fits_idle(ask, self._books, ever=False)
            if self._fits[ask.kind]:
                return ask
        now = infeasible(job, self._books, ever=False) or ""
        never = infeasible(job, self._books, ever=True)
        for one in group:
            if never and not one.admitted:
                self.refused.append(Refuse(one.job.id, never))
            elif one.reason != now:
                self.waits.append(Wait(one.job.id, now))
        return None

    def _ready(self, group: list[Pending], ask: Ask) -> list[Pending]:
        now_ms = self._books.now_ms
        ready = [one for one in group if one.not_before_ms <= now_ms and one.claim is None]
        for one in group if len(ready) < len(group) else ():
            if one.not_before_ms > now_ms:
                reason = f"tried again at {clock(one.not_before_ms, now_ms)}, after a failure"
                if one.reason != reason:
                    self.waits.append(Wait(one.job.id, reason))
            elif one.claim is not None:
                self.claiming.append((one, ask))
        return ready

    def lines(self) -> list[Line]:
        return [line for line in self._lines.values() if line.jobs]

    def put(self, after: Mapping[str, Pending | None]) -> None:
        """After a pass: by id, jobs that wait in another way now; None: no longer."""
        for line in self._lines.values():
            if line.served:
                line.jobs[: line.served] = [one for one in line.jobs[: line.served] if one.job.id not in after]
                line.served = 0
        self.claiming = [(one, ask) for one, ask in self.claiming if one.job.id not in after]
        for one in filter(None, after.values()):
            line = self._lines[kind(one.job)]
            if one.claim is None:
                insort(line.jobs, one, key=in_turn)
            else:
                self.claiming.append((one, line.ask))
