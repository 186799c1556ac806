"""Registered models: every version with its lineage, the aliases that point to one, and its files."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.client import shapes
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.here import Caller, Here, Service, Submitter, Viewer, refusals
from orchestrator.service.ranges import file_answer
from orchestrator.service.routes.artifacts import BINARY, CARD
from orchestrator.service.routes.parameters import (
    Alias,
    FilePath,
    ModelName,
    OneProject,
    ProjectName,
    Reference,
    Version,
)
from orchestrator.service.run_files import file_sizes, open_below, read_below, run_folder
from orchestrator.service.views import model_view
from orchestrator.store import ModelRecord

router = APIRouter(tags=["models"])


class Target(BaseModel):
    """Which version an alias points to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=1_000_000_000)


@router.get("/models", responses=refusals(404))
def models(
    here: Here, who: Viewer, project: OneProject = None, name: Annotated[str | None, Query(pattern=shapes.NAME)] = None
) -> shapes.ModelPage:
    """Models by name, newest version first."""
    asked = who.only(project)
    found = [model for one in asked or (None,) for model in here.store.models(one, name)]
    return shapes.ModelPage(models=tuple(model_view(model) for model in found))


@router.get("/models/{project}/{name}/{reference}", responses=refusals(404))
def model(here: Here, who: Viewer, project: ProjectName, name: ModelName, reference: Reference) -> shapes.ModelVersion:
    """One version, with its files."""
    found = _find(here, who, project, name, reference)
    try:
        card = json.loads(read_below(run_folder(here.settings.runs, found.path), CARD))
    except (Refusal, ValueError, RecursionError):
        card = {}
    listed: list[dict[str, Any]] = [*file_sizes(card), {"path": CARD}] if card else []
    return model_view(found, listed)


@router.get(
    "/models/{project}/{name}/{version}/files/{path:path}",
    response_class=Response,
    responses={**BINARY, **refusals(404, 416)},
)
def model_file(
    request: Request, here: Here, who: Viewer, project: ProjectName, name: ModelName, version: Version, path: FilePath
) -> Response:
    """A file of a model; `Range` for a part of it."""
    found = _find(here, who, project, name, str(version))
    return file_answer(open_below(run_folder(here.settings.runs, found.path), path), request)


@router.put("/models/{project}/{name}/aliases/{alias}", responses=refusals(403, 404))
def set_alias(
    here: Here, who: Submitter, project: ProjectName, name: ModelName, alias: Alias, target: Annotated[Target, Body()]
) -> shapes.ModelVersion:
    """Let an alias such as `production` point to a version; it may point to another one already."""
    if not who.sees(project):
        raise not_found(f"model: {project}/{name}")
    if alias == "latest":
        raise Refusal(422, "`latest` is always the newest version", path="alias")
    return model_view(here.store.set_alias(project, name, alias, target.version))


@router.delete("/models/{project}/{name}/aliases/{alias}", status_code=204, responses=refusals(403, 404))
def delete_alias(here: Here, who: Submitter, project: ProjectName, name: ModelName, alias: Alias) -> None:
    """Take an alias away; the version stays."""
    if not who.sees(project):
        raise not_found(f"model: {project}/{name}")
    here.store.delete_alias(project, name, alias)


def _find(here: Service, who: Caller, project: str, name: str, reference: str) -> ModelRecord:
    found = None
    if who.sees(project) and reference == "latest":
        found = next(iter(here.store.models(project, name)), None)
    elif who.sees(project):
        found = here.store.model(project, name, reference)
    if found is None:
        raise not_found(f"model: {project}/{name}@{reference}")
    return found
