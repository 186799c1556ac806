"""What a run has made so far: measurements, report, and the files of its models."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.client import shapes
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.here import Here, Service, Viewer, job_of, refusals
from orchestrator.service.ranges import file_answer
from orchestrator.service.routes.parameters import After, ArtifactName, FilePath, JobId
from orchestrator.service.run_files import (
    file_sizes,
    lines_after,
    names_below,
    open_below,
    read_below,
    run_folder,
)
from orchestrator.store import JobRecord

router = APIRouter(tags=["results"])

CARD = "artifact.json"
BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "the part that was asked for"},
    304: {"description": "the caller has it already"},
}


@router.get("/jobs/{job_id}/metrics", responses=refusals(404))
def metrics(
    here: Here,
    who: Viewer,
    job_id: JobId,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> shapes.MetricPage:
    """The run's measurements, from a position on: ask again with `next` for those that come."""
    job = job_of(here, who, job_id)
    try:
        lines, position = lines_after(run_folder(here.settings.runs, job.run_dir), "metrics.jsonl", after, limit)
    except Refusal:
        return shapes.MetricPage(metrics=(), next=after)  # nothing was measured yet
    return shapes.MetricPage(metrics=tuple(_records(lines)), next=position)


def _records(lines: list[bytes]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        try:
            record = json.loads(line, parse_constant=str)
        except (ValueError, RecursionError):
            continue  # a crash cut it off
        if isinstance(record, dict):
            records.append(record)
    return records


@router.get("/jobs/{job_id}/report", responses=refusals(404))
def report(here: Here, who: Viewer, job_id: JobId) -> Response:
    """The run's report.json, once there is one."""
    return Response(_from_run(here, job_of(here, who, job_id), "report.json"), media_type="application/json")


@router.get("/jobs/{job_id}/report.html", response_class=Response, responses={**BINARY, **refusals(404, 416)})
def report_page(request: Request, here: Here, who: Viewer, job_id: JobId) -> Response:
    """The same as a page that needs no network; to be kept as a file."""
    job = job_of(here, who, job_id)
    return file_answer(open_below(run_folder(here.settings.runs, job.run_dir), "report.html"), request)


def _from_run(here: Service, job: JobRecord, name: str) -> bytes:
    return read_below(run_folder(here.settings.runs, job.run_dir), name)


@router.get("/jobs/{job_id}/artifacts", responses=refusals(404))
def artifacts(here: Here, who: Viewer, job_id: JobId) -> shapes.ArtifactList:
    """The models of a run whose cards are written."""
    job = job_of(here, who, job_id)
    try:
        folder = run_folder(here.settings.runs, job.run_dir) / "artifacts"
        selected = json.loads(_from_run(here, job, "report.json"))["selected"]
    except (Refusal, ValueError, KeyError, TypeError):
        selected = None
    if job.run_dir is None:
        return shapes.ArtifactList(artifacts=())
    cards = []
    for name in names_below(folder):
        try:
            card = json.loads(read_below(folder, f"{name}/{CARD}"), parse_constant=str)
        except (Refusal, ValueError, RecursionError):
            continue  # not written yet
        if isinstance(card, dict):
            cards.append(shapes.ArtifactCard(name=name, selected=name == selected, files=_files(card), card=card))
    return shapes.ArtifactList(artifacts=tuple(cards))


def _files(card: dict[str, Any]) -> tuple[shapes.File, ...]:
    files = [
        shapes.File(path=each["path"], bytes=int(each.get("bytes", 0)), sha256=each.get("sha256"))
        for each in file_sizes(card)
    ]
    return (*files, shapes.File(path=CARD, bytes=0))


@router.get(
    "/jobs/{job_id}/artifacts/{artifact}/{path:path}",
    response_class=Response,
    responses={**BINARY, **refusals(404, 416)},
)
def artifact_file(
    request: Request, here: Here, who: Viewer, job_id: JobId, artifact: ArtifactName, path: FilePath
) -> Response:
    """A file of a model; `Range` for a part of it."""
    job = job_of(here, who, job_id)
    if not path:
        raise not_found("file")
    return file_answer(open_below(run_folder(here.settings.runs, job.run_dir), f"artifacts/{artifact}/{path}"), request)
