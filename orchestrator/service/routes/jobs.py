"""Jobs: submit, list, describe, cancel, resume; and the modules that travel with a submission."""

import asyncio
import json
import re
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs.errors import SpecError
from orchestrator.client import shapes
from orchestrator.service import code_store, submissions
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.here import Caller, Here, Service, Submitter, Viewer, job_of, refusals
from orchestrator.service.middleware import each_chunk
from orchestrator.service.routes.parameters import MOST, JobId, OneProject
from orchestrator.service.run_files import read_below, run_folder
from orchestrator.service.views import detail_view, job_view
from orchestrator.store import JobFilter, JobRecord, JobState, NewJob, new_job_id

router = APIRouter(tags=["jobs"])

_KEY = r"^[\x21-\x7e]{1,200}$"
_SHA256 = r"^[0-9a-f]{64}$"
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", description="The same key and body give the same job. 1 to 200 signs.")
]
_SPEC_SCHEMA = {
    "type": "object",
    "description": "A job spec: docs/spec.md; its schema is printed by `thresher schema`.",
    "required": ["name", "data", "model"],
    "properties": {
        "name": {"type": "string", "pattern": shapes.NAME},
        "project": {"type": "string", "pattern": shapes.NAME},
        "priority": {"type": "integer", "minimum": -100, "maximum": 100},
        "data": {"type": "object"},
        "model": {"type": "object"},
        "train": {"type": "object"},
    },
}
_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _SPEC_SCHEMA}, "application/yaml": {"schema": {"type": "string"}}},
    }
}
_ARCHIVE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/jobs",
    status_code=201,
    response_model=shapes.Job,
    responses={
        200: {"model": shapes.Job, "description": "it was submitted before"},
        **refusals(403, 404, 409, 413, 415),
    },
    openapi_extra=_SPEC_BODY,
)
async def submit(
    request: Request,
    response: Response,
    here: Here,
    who: Submitter,
    key: Key = None,
    code: Annotated[str | None, Query(pattern=_SHA256, description="Digest of modules that were sent before.")] = None,
) -> Any:
    """Queue a job. The answer comes once it is durable; what `thresher plan` refuses is refused with 422."""
    _check_key(key)
    body = await request.body()
    loop = asyncio.get_running_loop()
    kind = request.headers.get("content-type", "")
    found = await loop.run_in_executor(here.planners, _light, here, who, body, kind, key, code)
    if isinstance(found, submissions.Prepared):
        found = await loop.run_in_executor(here.heavy_planners, _queue, here, who, found, key, code)
    job, created = found
    here.figures.submissions.labels("created" if created else "repeated").inc()
    if created:
        here.wake()
    else:
        response.status_code = 200
    response.headers["Location"] = f"{request.url.path}/{job.id}"
    return job_view(job)


def _check_key(key: str | None) -> None:
    if key is not None and not re.fullmatch(_KEY, key):
        raise SpecError.at("Idempotency-Key", "not a key", key, "1 to 200 visible ASCII signs")


def _light(
    here: Service, who: Caller, body: bytes, kind: str, key: str | None, code: str | None
) -> submissions.Prepared | tuple[JobRecord, bool]:
    """The job, and whether it is new; or what is still to be planned, where that takes long."""
    found = _understand(here, who, body, kind, key, code)
    if not isinstance(found, submissions.Prepared):
        return found, False
    return found if found.heavy else _queue(here, who, found, key, code)


def _understand(
    here: Service, who: Caller, body: bytes, kind: str, key: str | None, code: str | None
) -> submissions.Prepared | JobRecord:
    """What was asked for; or the job, where it was asked for before."""
    document = submissions.read_body(body, kind)
    project = document.get("project", who.token.project or "default")
    folder = None
    if code is not None and isinstance(project, str) and who.sees(project):
        folder = code_store.find(here.settings, project, code)
    prepared = submissions.prepare(document, who.token.project, folder, code, here.settings)
    if key is None or here.store.job_by_key(prepared.spec.project, key) is None:
        return prepared
    # The first one counts, even where it would be refused by now.
    return here.store.submit_job(_new_job(here, who, prepared, new_job_id(prepared.spec.name), code), key)[0]


def _queue(
    here: Service, who: Caller, prepared: submissions.Prepared, key: str | None, code: str | None
) -> tuple[JobRecord, bool]:
    folder = None if code is None else code_store.find(here.settings, prepared.spec.project, code)
    submissions.plan(prepared, folder, here.settings)
    nodes, _ = here.seen.look()
    if nodes:
        submissions.check_feasible(prepared, here.store.now_ms(), nodes, tuple(here.store.projects()))
    job_id = new_job_id(prepared.spec.name)
    new = _new_job(here, who, prepared, job_id, code)
    if folder is None:
        return here.store.submit_job(new, key)
    with code_store.laid_down(folder, here.settings.job_folder(job_id)) as keep:
        job, created = here.store.submit_job(new, key)
        if created:
            keep()
    return job, created


def _new_job(here: Service, who: Caller, prepared: submissions.Prepared, job_id: str, code: str | None) -> NewJob:
    spec = prepared.spec
    return NewJob(
        name=spec.name,
        project=spec.project,
        spec=prepared.document,
        spec_hash=submissions.spec_digest(spec),
        demand=prepared.demand,
        priority=spec.priority,
        limit_ms=submissions.limit_ms(spec),
        has_code=code is not None,
        id=job_id,
        run_dir=str(here.settings.runs / job_id),
        submitted_by=who.token.name,
        body_digest=prepared.digest,
    )


@router.put(
    "/code/{digest}",
    status_code=201,
    responses=refusals(403, 404, 408, 413),
    openapi_extra=_ARCHIVE_BODY,
)
async def upload_code(
    request: Request,
    here: Here,
    who: Submitter,
    digest: Annotated[str, Path(pattern=_SHA256, description="SHA-256 of the archive.")],
    project: OneProject = None,
) -> shapes.CodeReceipt:
    """Send the modules of a model of your own: a .tar.gz of plain files. A submission names them by their digest."""
    place = project or who.token.project or "default"
    if not who.sees(place) or await run_in_threadpool(here.store.project, place) is None:
        raise not_found(f"project: {place}")
    limits = here.settings.limits
    with code_store.receiving(here.settings, place) as file:
        seen = sha256()

        def take(chunk: bytes) -> None:
            seen.update(chunk)
            file.write(chunk)

        if not await each_chunk(request.scope, request.receive, limits.code_bytes, limits.code_body_s, take):
            raise Refusal(400, "the body was cut off")
        if seen.hexdigest() != digest:
            raise SpecError.at("digest", "the body has another SHA-256", digest, seen.hexdigest())
        size, count = file.tell(), await run_in_threadpool(code_store.keep, file, here.settings, place, digest)
    return shapes.CodeReceipt(sha256=digest, bytes=size, files=count)


@router.get("/jobs", responses=refusals(404))
def list_jobs(
    here: Here,
    who: Viewer,
    project: OneProject = None,
    state: Annotated[list[JobState] | None, Query(description="Any of these.")] = None,
    name: Annotated[str | None, Query(pattern=shapes.NAME)] = None,
    since_ms: Annotated[int | None, Query(ge=0, le=MOST, description="Submitted then or later.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, pattern=r"^[0-9]{1,16}~[A-Za-z0-9._-]+$")] = None,
) -> shapes.JobPage:
    """Jobs, newest first, a page at a time."""
    which = JobFilter(who.only(project), tuple(state) if state else None, name, since_ms)
    page = here.store.list_jobs(which, limit, cursor)
    return shapes.JobPage(jobs=tuple(job_view(job) for job in page.items), next=page.next_cursor)


@router.get("/jobs/{job_id}", responses=refusals(404))
def describe(here: Here, who: Viewer, job_id: JobId) -> shapes.JobDetail:
    """A job: what was asked for, where it stands and why, every attempt, and what came out."""
    job = job_of(here, who, job_id)
    return detail_view(job, here.store.attempts(job.id), _summary(here, job))


def _summary(here: Service, job: JobRecord) -> dict[str, Any] | None:
    if job.state is not JobState.SUCCEEDED:
        return None
    try:
        report = json.loads(read_below(run_folder(here.settings.runs, job.run_dir), "report.json"))
        selected = next(each for each in report["artifacts"] if each["name"] == report["selected"])
    except (Refusal, ValueError, KeyError, StopIteration, TypeError):
        return None  # moved away, or cleaned
    return {
        "selected": report["selected"],
        "measurement": selected.get("measurement"),
        "test_metric": selected.get("test_metric"),
        "goodput": report.get("goodput"),
    }


@router.post("/jobs/{job_id}/cancel", responses=refusals(403, 404, 409))
def cancel(here: Here, who: Submitter, job_id: JobId) -> shapes.Job:
    """Ask for a job's end. What runs writes a checkpoint first: CANCELLING, then CANCELLED."""
    job_of(here, who, job_id)
    job = here.store.request_cancel(job_id, who.token.name)
    here.wake()
    return job_view(job)


@router.post(
    "/jobs/{job_id}/resume",
    status_code=201,
    responses={200: {"model": shapes.Job, "description": "it was asked for before"}, **refusals(403, 404, 409)},
)
def resume(here: Here, who: Submitter, response: Response, job_id: JobId, key: Key = None) -> shapes.Job:
    """A new job that goes on in the run directory of one that FAILED or was CANCELLED."""
    _check_key(key)
    job_of(here, who, job_id)
    job, created = here.store.request_resume(job_id, who.token.name, key)
    if created:
        here.wake()
    else:
        response.status_code = 200
    return job_view(job)
