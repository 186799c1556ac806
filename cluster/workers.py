"""The seam between who wants work done and where it runs.

Whoever drives work (a stage, a trial, a test) knows a WorkerGroup and its Session, and nothing of Ray. A *work* is a
function `(context, request) -> result` that every member of the group runs with the same request; the result, and
the reports, are those of rank 0. A work that is worth repeating resumes from its own checkpoints: after the loss
of a worker, `run_work` rebuilds the group and simply starts it again, be it with fewer workers or more than before.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.context import Context
from jobs.errors import WorkerLost

logger = logging.getLogger(__name__)

Work = Callable[[Context, Any], Any]


class Session(Protocol):
    """One work on its way through a group. A failure is raised by whichever method is called next."""

    def next(self, timeout_s: float) -> list[dict[str, Any]]:
        """The new reports of rank 0, in order; empty if none came within `timeout_s`, or at the end.

        Raises WorkerLost if a worker died or went silent, and the error of the work if it raised one; the reports
        that came before are handed out first.
        """

    def done(self) -> bool:
        """True once the work has ended and every report was taken. Raises as `next` does."""

    def result(self, timeout_s: float) -> Any:
        """What the work returned at rank 0. Raises as `next` does, and TimeoutError if it has not ended by then."""

    def ask_stop(self) -> None:
        """Asks the work to end early, at its next safe point."""

    def stop(self, grace_s: float) -> None:
        """Asks the work to end early, waits `grace_s` for it, then kills the workers. Never raises the work's error."""


class WorkerGroup(Protocol):
    """Workers that start together and outlive the works that they run, one after the other."""

    @property
    def size(self) -> int:
        """Number of workers."""

    def start(self, work: Work, request: Any) -> Session:
        """Starts `work` in every worker. The group runs one work at a time."""

    def rebuild(self) -> None:
        """Makes the group whole again after a loss, and larger if it can grow: its size may be another then."""

    def can_grow(self) -> bool:
        """Whether `rebuild` would make the group larger, at once. Cheap to ask often."""

    def stop(self) -> None:
        """Ends every worker and frees what they held."""


def run_work(
    group: WorkerGroup,
    work: Work,
    request: Any,
    *,
    on_report: Callable[[dict[str, Any]], None] | None = None,
    max_failures: int = 0,
    on_restart: Callable[[WorkerLost, int], None] | None = None,
    resizable: bool = False,
    on_resize: Callable[[int, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    poll_s: float = 1.0,
    stop_grace_s: float = 30.0,
) -> Any:
    """Runs a work to its end and returns the result of rank 0.

    When a worker is lost, the group is rebuilt and the work started again, at most `max_failures` times; before each,
    `on_restart` is told the loss and how many there have been. When the group can grow, a `resizable` work is asked to
    end early and started again in the larger group. Whatever else ends the drive early, an interruption or an error of
    `on_report` included, stops the work within `stop_grace_s`.

    Args:
        on_report: gets each report of rank 0, in order.
        resizable: the work goes on where it was asked to end early, with the document {"stopped": true} as its result.
        on_resize: is told the new size, and the seconds that it took to form the group anew.
        should_stop: asked at least every `poll_s`; once it says True the work is asked to end early, and what it then
            returns is the result.
        poll_s: how long one wait for reports may last.

    Raises:
        WorkerLost: more than `max_failures` times; names the cause of each.
        ThresherError: the work's own error; others arrive as JobFailed.
    """
    causes: list[str] = []
    rebuild = False
    while True:
        try:
            if rebuild:
                size, started = group.size, time.monotonic()
                group.rebuild()
                if on_resize is not None and group.size != size:
                    on_resize(group.size, time.monotonic() - started)
            drive = _Drive(group, group.start(work, request), resizable, should_stop, poll_s, stop_grace_s)
            result = drive.run(on_report)
            rebuild = drive.grows and isinstance(result, dict) and bool(result.get("stopped"))
            if not rebuild:
                return result
        except WorkerLost as error:
            causes.append(str(error))
            if len(causes) > max_failures:
                raise _used_up(causes) from error
            logger.info("%s; restart %d of at most %d", error, len(causes), max_failures)
            if on_restart is not None:
                on_restart(error, len(causes))
            rebuild = True


def _used_up(causes: list[str]) -> WorkerLost:
    if len(causes) == 1:
        return WorkerLost(causes[0])
    listed = "".join(f"\n  attempt {number}: {cause}" for number, cause in enumerate(causes, start=1))
    return WorkerLost(
        f"workers were lost in {len(causes)} attempts, and {len(causes) - 1} retries are allowed:{listed}"
    )


@dataclass
class _Drive:
    """One attempt at a work, until it ends by itself or is asked to."""

    group: WorkerGroup
    session: Session
    resizable: bool
    should_stop: Callable[[], bool] | None
    poll_s: float
    stop_grace_s: float
    grows: bool = False
    """Whether the work was asked to end because the group can grow."""

    def run(self, on_report: Callable[[dict[str, Any]], None] | None) -> Any:
        session = self.session
        try:
            while True:
                reports = session.next(self.poll_s)
                if on_report is not None:
                    for report in reports:
                        on_report(report)
                if not reports and session.done():
                    return session.result(self.poll_s)
                if self.should_stop is not None and self.should_stop():
                    self.grows = False
                    session.stop(self.stop_grace_s)
                    return session.result(self.poll_s)
                if self.resizable and not self.grows and self.group.can_grow():
                    self.grows = True
                    session.ask_stop()
        except WorkerLost:
            raise
        except BaseException:
            # Nobody will take this work's reports any more: leave no member of the group at work on it.
            session.stop(self.stop_grace_s)
            raise
