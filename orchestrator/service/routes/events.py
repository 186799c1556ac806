"""What was committed, in order: as pages, or as server-sent events that are taken up where they broke off."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from orchestrator.client import shapes
from orchestrator.service.answers import Refusal
from orchestrator.service.here import Caller, Here, Service, Viewer, ended, job_of, refusals
from orchestrator.service.routes.parameters import MOST, After, JobId
from orchestrator.service.views import event_view
from orchestrator.store import EventRecord, StoreUnavailable

router = APIRouter(tags=["logs and events"])

_POLL_S = 0.5
_SIGN_OF_LIFE_S = 15.0
_BATCH = 200
_STREAM = "text/event-stream"
_ADMINS_ALONE = ("token",)
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {_STREAM: {"schema": {"type": "string"}}}}}

Limit = Annotated[int, Query(ge=1, le=1000)]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Goes before `after`, if it is a number.")
]


@router.get("/jobs/{job_id}/events", response_model=shapes.EventPage, responses={**_ANSWERS, **refusals(404)})
async def job_events(
    request: Request, here: Here, who: Viewer, job_id: JobId, after: After = 0, limit: Limit = 100,
    last_event_id: LastEventId = None,
) -> Any:  # fmt: skip
    """What happened to a job. With `Accept: text/event-stream`: as it happens, until the job has ended."""
    await run_in_threadpool(job_of, here, who, job_id)
    return await _answer(request, here, who, job_id, _start(after, last_event_id), limit)


@router.get("/events", response_model=shapes.EventPage, responses={**_ANSWERS, **refusals()})
async def events(
    request: Request, here: Here, who: Viewer, after: After = 0, limit: Limit = 100, last_event_id: LastEventId = None
) -> Any:
    """What happened to everything that the token sees. With `Accept: text/event-stream`: as it happens."""
    return await _answer(request, here, who, None, _start(after, last_event_id), limit)


def _start(after: int, last_event_id: str | None) -> int:
    given = last_event_id or ""
    return min(int(given), MOST) if given.isascii() and given.isdecimal() and len(given) <= 16 else after


async def _answer(
    request: Request, here: Service, who: Caller, job_id: str | None, after: int, limit: int
) -> shapes.EventPage | StreamingResponse:
    if _STREAM in request.headers.get("accept", ""):
        here.streams.enter(who.token.id)
        body = _stream(here, who, job_id, after)
        return StreamingResponse(body, media_type=_STREAM, headers={"X-Accel-Buffering": "no"})
    seen, found = await run_in_threadpool(_read, here, who, job_id, after, limit)
    return shapes.EventPage(events=tuple(event_view(event) for event in found), next=seen)


def _read(here: Service, who: Caller, job_id: str | None, after: int, limit: int) -> tuple[int, list[EventRecord]]:
    """The position after what was read, and what of it the caller may see."""
    found = here.store.events(job_id, None if job_id is not None else who.projects, after, limit)
    position = found[-1].seq if found else after
    return position, [event for event in found if who.may("admin") or event.kind not in _ADMINS_ALONE]


async def _stream(here: Service, who: Caller, job_id: str | None, after: int) -> AsyncIterator[str]:
    with here.streams.held(who.token.id):
        started = spoken = time.monotonic()
        yield "retry: 1000\n\n"
        while not here.stopping.is_set() and time.monotonic() - started < here.settings.limits.stream_s:
            position, found, over = after, list[EventRecord](), False
            try:
                # The state first: after a job's end nothing is added to its events.
                over = job_id is not None and ended(await run_in_threadpool(job_of, here, who, job_id))
                position, found = await run_in_threadpool(_read, here, who, job_id, after, _BATCH)
            except Refusal:
                return  # the job was removed meanwhile: who asks again is told so
            except StoreUnavailable:
                over = False  # it comes back, and this stream misses nothing
            for event in found:
                yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event_view(event).model_dump_json()}\n\n"
            if over and position == after:
                yield "event: end\ndata: {}\n\n"
                return
            if position == after:
                await asyncio.sleep(_POLL_S)
            if found:
                spoken = time.monotonic()
            elif time.monotonic() - spoken > _SIGN_OF_LIFE_S:
                spoken = time.monotonic()
                yield ": here\n\n"
            after = position
