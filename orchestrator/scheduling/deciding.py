"""From a snapshot to decisions: pure, the same for the same snapshot, whatever the order within it.

A pass goes through the queue once. What it decides is then put into the snapshot and the queue is gone through again,
until there is nothing left to decide: so a second call, once the decisions were carried out, decides nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.scheduling.books import Books
from orchestrator.scheduling.ledger import NEVER, Ask
from orchestrator.scheduling.lines import Line, Lines
from orchestrator.scheduling.placing import place
from orchestrator.scheduling.reasons import (
    behind_text,
    nodes_text,
    quota_text,
    reserved_text,
    victims_text,
)
from orchestrator.scheduling.records import (
    Decision,
    DropClaim,
    Gang,
    Job,
    Pending,
    Preempt,
    Refuse,
    Snapshot,
    Start,
    Wait,
)
from orchestrator.scheduling.releases import Holding, Places
from orchestrator.scheduling.standing import Standing
from orchestrator.scheduling.victims import Victims
from orchestrator.scheduling.waiting import Waiting


def decide(snapshot: Snapshot) -> list[Decision]:
    """All that is to be done now; `Wait` only for jobs whose reason is not the one that they have."""
    with _without_collections():
        return _decide(snapshot)


def _decide(snapshot: Snapshot) -> list[Decision]:
    books = Books(snapshot)
    waiting = Waiting(books, snapshot.pending)
    standing = Standing(books, snapshot.gangs)
    decisions: list[Decision] = [*waiting.refused]
    while True:
        found = _Pass(books, standing, waiting)
        found.run()
        if not found.acts:
            return decisions + waiting.waits + found.waits
        decisions += found.acts
        waiting.put(found.moved)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Nothing here refers to itself in a circle; to look for such among 10,000 jobs takes a good part of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def apply(snapshot: Snapshot, decisions: list[Decision]) -> Snapshot:
    """The snapshot as it is once the decisions were carried out, and no time has passed."""
    gangs = {gang.job.id: gang for gang in snapshot.gangs}
    pending = {one.job.id: one for one in snapshot.pending}
    for decision in decisions:
        match decision:
            case Start(job, placement):
                gangs[job] = Gang(pending.pop(job).job, placement, snapshot.now_ms)
            case Preempt(for_job, victims, placement):
                pending[for_job] = replace(pending[for_job], claim=placement)
                for victim in victims:
                    gangs[victim] = replace(gangs[victim], leaving_since_ms=snapshot.now_ms)
            case DropClaim(job):
                pending[job] = replace(pending[job], claim=None)
            case Refuse(job):
                del pending[job]
            case Wait(job, reason):
                pending[job] = replace(pending[job], reason=reason, admitted=True)
    return replace(snapshot, gangs=tuple(gangs.values()), pending=tuple(pending.values()))


class _Pass:
    """The queue gone through once. `acts` changes something, `waits` says why the rest does not start."""

    def __init__(self, books: Books, standing: Standing, waiting: Waiting) -> None:
        self._books = books
        self._standing = standing
        self._waiting = waiting
        self._ledger = standing.ledger()
        self._victims = Victims(books, standing, self._ledger)
        self._reservations_left = self._books.snapshot.policy.reservations
        self._held: list[Ask] = []
        self._first: tuple[Job, str] | None = None
        """The first that waits, with the words for who is behind it; and of each project."""
        self._first_of_project: dict[int, tuple[Job, str]] = {}
        self._reasons: dict[tuple[int, bool, int], str] = {}
        self.acts: list[Decision] = []
        self.moved: dict[str, Pending | None] = {}
        """Jobs that the acts are for, as they are once these were carried out; None: they wait no longer."""
        self.waits: list[Wait] = []

    def run(self) -> None:
        dropped = self._claims(self._waiting.claiming)
        self._lines = Lines(self._books.quotas, self._standing, [*self._waiting.lines(), *dropped])
        for ask in self._held:
            self._lines.speak_for(ask)
        for line in self._lines:
            self._serve(line)

    def _say(self, one: Pending, reason: str, reserved_ms: int | None = None, ahead: Job | None = None) -> None:
        if one.reason != reason:
            self.waits.append(Wait(one.job.id, reason, reserved_ms, ahead.id if ahead else None))

    def _claims(self, claiming: list[tuple[Pending, Ask]]) -> list[Line]:
        """Jobs whose victims are leaving or have left come first; a claim that cannot be met makes a line."""
        dropped: list[Line] = []
        for one, ask in sorted(claiming, key=lambda c: (-c[0].job.priority, c[0].job.submitted_ms, c[0].job.id)):
            if not self._claim(one, ask):
                self.acts.append(DropClaim(one.job.id, "what it was promised is not there"))
                self.moved[one.job.id] = replace(one, claim=None)
                dropped.append(Line([one], ask))
        return dropped

    def _claim(self, one: Pending, ask: Ask) -> bool:
        books, ledger = self._books, self._ledger
        assert one.claim is not None
        places = books.places(one.claim) if len(one.claim) == ask.workers else None
        if places is None:
            return False
        capacity = ledger.capacity(ask)
        if all(capacity[node] >= count for node, count in places) and ledger.allows(ask):
            self._start(one, ask, places)
            return True
        room = ledger.room(ask, books.soon_ms)
        if not (room.fits() and all(room.capacity[node] >= count for node, count in places)):
            return False
        self._hold(ask, places)
        leaving = self._standing.leaving_from(node for node, _ in places)
        self._say(one, victims_text(leaving) if leaving else "waiting for what it was promised")
        return True

    def _serve(self, line: Line) -> None:
        one, ask, ledger = line.head, line.ask, self._ledger
        allowed, fits = ledger.starts(ask)
        if fits:
            line.served += 1
            self._start(one, ask, place(ask.workers, ledger.capacity(ask), self._books.unwanted(ask.bundle)))
            self._lines.speak_for(ask)
            self._lines.put_back(line)
            return
        reclaims = self._lines.within_nominal(ask)
        could = self._victims.could(one.job, ask, reclaims)
        reserved_ms = None
        if could or self._reservations_left:
            until_ms = NEVER if self._reservations_left else self._books.soon_ms
            reserved_ms = ledger.earliest(ask, until_ms)
        if could and (reserved_ms is None or reserved_ms > self._books.soon_ms) and self._preempt(line, reclaims):
            return
        if reserved_ms is None:
            self._close(line, allowed)
            return
        # A job that starts soon anyway needs no victims, and its room is kept beyond the number of reservations.
        if not could or reserved_ms > self._books.soon_ms:
            self._reservations_left -= 1
        reason = self._why(line, allowed)
        room = ledger.room(ask, reserved_ms)
        self._promise(ask, place(ask.workers, room.capacity, self._books.unwanted(ask.bundle)), reserved_ms)
        self._wait(line, f"{reason}; {reserved_text(reserved_ms, self._books.now_ms)}", allowed, reserved_ms)
        self._lines.speak_within_nominal(ask, 1)
        line.served += 1
        self._lines.put_back(line)

    def _start(self, one: Pending, ask: Ask, places: Places) -> None:
        holding, placement = self._holding(ask, places), self._books.placement(places)
        self._ledger.take_now(holding, min(NEVER, ask.end(self._books.now_ms)))
        self._standing.start(Gang(one.job, placement, self._books.now_ms), holding)
        self.acts.append(Start(one.job.id, placement))
        self.moved[one.job.id] = None

    def _hold(self, ask: Ask, places: Places) -> None:
        """From now on nobody else gets these places, though victims are still on them."""
        self._ledger.take_now(self._holding(ask, places), min(NEVER, ask.end(self._books.soon_ms)))
        self._held.append(ask)

    def _promise(self, ask: Ask, places: Places, start_ms: int) -> None:
        self._ledger.promise(self._holding(ask, places), start_ms, ask.end(start_ms))

    def _holding(self, ask: Ask, places: Places) -> Holding:
        return Holding.of(ask.project, ask.bundle, ask.workers, places)

    def _preempt(self, line: Line, reclaims: bool) -> bool:
        one, ask, books = line.head, line.ask, self._books
        found = self._victims.choose(one.job, ask, reclaims)
        if found is None:
            return False
        victims, room = found
        places = place(ask.workers, room.capacity, books.unwanted(ask.bundle))
        self._victims.gone(victims)
        for victim in victims:
            self._ledger.leaves_at(victim.holding, victim.end_ms, min(victim.end_ms, books.soon_ms))
            self._standing.leave(victim)
        self._hold(ask, places)
        names, placement = tuple(victim.gang.job.id for victim in victims), books.placement(places)
        others = sorted({victim.gang.job.project for victim in victims} - {one.job.project})
        reason = f"priority {one.job.priority} is higher" if not others else f"borrowed by {', '.join(others)}"
        self.acts.append(Preempt(one.job.id, names, placement, reason))
        self.moved[one.job.id] = replace(one, claim=placement)
        self._lines.speak_within_nominal(ask, 1)
        line.served += 1
        self._lines.put_back(line)
        return True

    def _close(self, line: Line, allowed: bool) -> None:
        """The head cannot start and is promised nothing: so it is with all behind it."""
        own = self._lines.speak_within_nominal(line.ask, len(line.jobs) - line.served)
        if own and not allowed:
            self._ledger.claim_quota(line.ask.project, line.ask.needs, own)
        if self.acts:
            return  # The queue is gone through again: what would be said now is never heard.
        why = self._why(line, allowed)
        self._wait(line, why, allowed, None)
        behind = line.jobs[line.served + 1 :]
        if behind:
            head = line.head.job
            text = f"{why}; {behind_text(head)}"
            for one in behind:
                if one.reason != text:
                    self._say(one, text, None, head)

    def _why(self, line: Line, allowed: bool) -> str:
        key = (line.ask.kind, allowed, self._ledger.version)
        if key not in self._reasons:
            self._reasons[key] = self._reason(line.head.job, line.ask, allowed)
        return self._reasons[key]

    def _reason(self, job: Job, ask: Ask, allowed: bool) -> str:
        if not allowed:
            names, left = self._books.names, self._ledger.available_now(ask.project)
            short = tuple((names[column], need, left[column]) for column, need in ask.needs if need > left[column])
            return quota_text(job.project, short) if short else "waiting for quota that jobs ahead were promised"
        room = self._ledger.room_now(ask.bundle)
        return nodes_text(job.demand, min(room, ask.workers), kept=room >= ask.workers)

    def _wait(self, line: Line, reason: str, allowed: bool, reserved_ms: int | None) -> None:
        one, project = line.head, line.ask.project
        first = self._first if allowed else self._first_of_project.get(project, self._first)
        if first:
            self._say(one, f"{reason}; {first[1]}", reserved_ms, first[0])
        else:
            self._say(one, reason, reserved_ms)
        if project not in self._first_of_project:
            self._first_of_project[project] = one.job, behind_text(one.job)
            self._first = self._first or self._first_of_project[project]
