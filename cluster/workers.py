"""The seam between who wants work done and where it runs.

Whoever drives work (a stage, a trial, a test) knows a WorkerGroup and its Session, and nothing of Ray. A *work* is a
function `(context, request) -> result` that every member of the group runs with the same request; the result, and
the reports, are those of rank 0. A work that is worth repeating resumes from its own checkpoints: after the loss
of a worker, `run_work` rebuilds the group and simply starts it again.
"""

import logging
from collections.abc import Callable
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
        """Replaces every worker by a new process."""

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
    should_stop: Callable[[], bool] | None = None,
    poll_s: float = 1.0,
    stop_grace_s: float = 30.0,
) -> Any:
    """Runs a work to its end and returns the result of rank 0.

    When a worker is lost, the group is rebuilt and the work started again, at most `max_failures` times; before each,
    `on_restart` is told the loss and how many there have been. Whatever else ends the drive early, an
    interruption or an error of `on_report` included, stops the work within `stop_grace_s`.

    Args:
        on_report: gets each report of rank 0, in order.
        should_stop: asked at least every `poll_s`; once it says True the work is asked to end early, and what it then
            returns is the result.
        poll_s: how long one wait for reports may last.

    Raises:
        WorkerLost: more than `max_failures` times.
        ThresherError: the work's own error; others arrive as JobFailed.
    """
    failures = 0
    while True:
        try:
            if failures:
                group.rebuild()
            return _drive(group.start(work, request), on_report, should_stop, poll_s, stop_grace_s)
        except WorkerLost as error:
            failures += 1
            if failures > max_failures:
                raise
            logger.warning("%s; restart %d of at most %d", error, failures, max_failures)
            if on_restart is not None:
                on_restart(error, failures)


def _drive(
    session: Session,
    on_report: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
    poll_s: float,
    stop_grace_s: float,
) -> Any:
    try:
        while True:
            reports = session.next(poll_s)
            if on_report is not None:
                for report in reports:
                    on_report(report)
            if not reports and session.done():
                return session.result(poll_s)
            if should_stop is not None and should_stop():
                session.stop(stop_grace_s)
                return session.result(poll_s)
    except WorkerLost:
        raise
    except BaseException:
        # Nobody will take this work's reports any more: leave no member of the group at work on it.
        session.stop(stop_grace_s)
        raise
