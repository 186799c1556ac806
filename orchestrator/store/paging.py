"""Pages of jobs, newest first, that cost the same however many jobs there are."""

from itertools import product
from typing import Any

from sqlalchemy import Connection, Select, select, tuple_, union_all

from jobs.errors import SpecError
from orchestrator.store import rows
from orchestrator.store.records import JobFilter, JobRecord, Page
from orchestrator.store.tables import jobs

MAX_LIMIT = 1000
_MOST_RANGES = 64


def page(connection: Connection, which: JobFilter, limit: int, cursor: str | None) -> Page[JobRecord]:
    """What follows after `cursor`, at most `limit` jobs.

    Jobs that come meanwhile are newer and stand before the first page: no page shows a job twice, or leaves one out.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise SpecError.at("limit", "out of range", limit, f"1 to {MAX_LIMIT}")
    key = jobs.c.submitted_ms.desc(), jobs.c.id.desc()
    found = select(jobs.c.id).order_by(*key).limit(limit + 1)
    if which.since_ms is not None:
        found = found.where(jobs.c.submitted_ms >= which.since_ms)
    if which.name is not None:
        found = found.where(jobs.c.name == which.name)
    if cursor is not None:
        found = found.where(tuple_(jobs.c.submitted_ms, jobs.c.id) < tuple_(*_position(cursor)))
    ids = [one.subquery() for one in _ranges(found, which)]
    if not ids:
        return Page(())
    wanted = union_all(*(select(one) for one in ids))
    query = rows.select_jobs(jobs.c.id.in_(wanted)).order_by(*key).limit(limit + 1)
    records = [rows.job(row) for row in connection.execute(query)]
    if len(records) <= limit:
        return Page(tuple(records))
    last = records[limit - 1]
    return Page(tuple(records[:limit]), f"{last.submitted_ms}~{last.id}")


def _ranges(found: Select[Any], which: JobFilter) -> list[Select[Any]]:
    """One query for each project and state: each reads a stretch of an index and stops at the limit.

    A database that is asked for several states at once would sort all that have one of them.
    """
    projects, states = which.projects, which.states
    if which.name is not None or len(projects or [0]) * len(states or [0]) > _MOST_RANGES:
        if projects is not None:
            found = found.where(jobs.c.project.in_(projects))
        return [found if states is None else found.where(jobs.c.state.in_(states))]
    ranges = []
    for project, state in product(sorted(set(projects)) if projects is not None else [None],
                                  sorted(set(states)) if states is not None else [None]):  # fmt: skip
        one = found
        if project is not None:
            one = one.where(jobs.c.project == project)
        if state is not None:
            one = one.where(jobs.c.state == state)
        ranges.append(one)
    return ranges


def _position(cursor: str) -> tuple[int, str]:
    time, mark, job_id = cursor.partition("~")
    if not (mark and job_id and time.isascii() and time.isdecimal() and len(time) < 17):
        raise SpecError.at("cursor", "not the cursor of a page", cursor, "next_cursor of the page before")
    return int(time), job_id
