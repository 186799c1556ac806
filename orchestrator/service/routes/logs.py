"""What a job's attempts write, as it is written; a reader that was cut off comes back with its position."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from jobs.errors import ClusterUnreachable
from orchestrator.client.following import ATTEMPT_HEADER
from orchestrator.service.answers import Refusal
from orchestrator.service.here import Caller, Here, Service, Viewer, ended, job_of, refusals
from orchestrator.service.routes.parameters import MOST, JobId
from orchestrator.store import AttemptRecord, JobRecord, StoreUnavailable

router = APIRouter(tags=["logs and events"])

_CHUNK = 256 << 10
_POLL_S = 0.5
_QUIET_S = 15.0
"""A follower of a job without an attempt is sent home after so long, to look at the job."""


@router.get(
    "/jobs/{job_id}/logs",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(404)},
)
async def logs(
    here: Here,
    who: Viewer,
    job_id: JobId,
    attempt: Annotated[int, Query(ge=1, le=1_000_000, description="Each attempt has a log of its own.")] = 1,
    offset: Annotated[int, Query(ge=0, le=MOST, description="The first byte to send.")] = 0,
    follow: Annotated[bool, Query(description="Until the attempt has ended.")] = False,
) -> Response:
    """The log of one attempt, from a byte on. Empty where there is no such attempt yet."""
    job = await run_in_threadpool(job_of, here, who, job_id)
    first = await _read(here, job, attempt, offset)
    headers = {ATTEMPT_HEADER: str(attempt), "X-Accel-Buffering": "no"}
    if not follow:
        return StreamingResponse(_all(here, job, attempt, offset, first), headers=headers, media_type="text/plain")
    here.streams.enter(who.token.id)
    body = _follow(here, who, job_id, attempt, offset)
    return StreamingResponse(body, headers=headers, media_type="text/plain")


async def _all(here: Service, job: JobRecord, number: int, offset: int, chunk: bytes) -> AsyncIterator[bytes]:
    while chunk:
        yield chunk
        offset += len(chunk)
        chunk = await _read(here, job, number, offset)


async def _follow(here: Service, who: Caller, job_id: str, number: int, offset: int) -> AsyncIterator[bytes]:
    with here.streams.held(who.token.id):
        started = time.monotonic()
        while not here.stopping.is_set() and time.monotonic() - started < here.settings.limits.stream_s:
            try:
                # The state first: what is read after an attempt's end is all that it wrote.
                job = await run_in_threadpool(job_of, here, who, job_id)
                over = _over(job, number)
                chunk = await _read(here, job, number, offset)
            except Refusal:
                return  # the job was removed meanwhile: who asks again is told so
            except (ClusterUnreachable, StoreUnavailable):
                over, chunk, job = False, b"", None
            if chunk:
                offset += len(chunk)
                yield chunk
            elif over or (job is not None and job.attempt is None and time.monotonic() - started > _QUIET_S):
                return
            else:
                await asyncio.sleep(_POLL_S)


async def _read(here: Service, job: JobRecord, number: int, offset: int) -> bytes:
    def work() -> bytes:
        found = _attempt(here, job, number)
        return b"" if found is None else here.logs.read(job, found, offset, _CHUNK)

    return await asyncio.get_running_loop().run_in_executor(here.readers, work)


def _attempt(here: Service, job: JobRecord, number: int) -> AttemptRecord | None:
    newest = job.attempt
    if newest is None or newest.number == number:
        return newest
    return next((each for each in here.store.attempts(job.id) if each.number == number), None)


def _over(job: JobRecord, number: int) -> bool:
    newest = job.attempt
    return ended(job) or (newest is not None and (newest.number > number or not newest.state.live))
