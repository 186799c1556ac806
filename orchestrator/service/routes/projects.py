"""Projects: who shares the cluster with whom, and how much of it each owns."""

from typing import Annotated

from fastapi import APIRouter, Body

from orchestrator.client import shapes
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.here import Admin, Here, Viewer, refusals
from orchestrator.service.routes.parameters import ProjectName
from orchestrator.service.views import project_of, project_view

router = APIRouter(tags=["projects"])


@router.get("/projects", responses=refusals())
def projects(here: Here, who: Viewer) -> shapes.ProjectList:
    """Those that the token sees."""
    return shapes.ProjectList(
        projects=tuple(project_view(each) for each in here.store.projects() if who.sees(each.name))
    )


@router.get("/projects/{name}", responses=refusals(404))
def project(here: Here, who: Viewer, name: ProjectName) -> shapes.Project:
    """One project, with its quota."""
    found = here.store.project(name) if who.sees(name) else None
    if found is None:
        raise not_found(f"project: {name}")
    return project_view(found)


@router.put("/projects/{name}", responses=refusals(403))
def put_project(
    here: Here, who: Admin, name: ProjectName, settings: Annotated[shapes.ProjectSettings, Body()]
) -> shapes.Project:
    """Make a project, or change it; what is left out is the default. Only admins of all projects may."""
    who.need_all_projects()
    done = project_view(here.store.put_project(project_of(name, settings)))
    here.wake()
    return done


@router.delete("/projects/{name}", status_code=204, responses=refusals(403, 404, 409))
def delete_project(here: Here, who: Admin, name: ProjectName) -> None:
    """Remove a project, and revoke its tokens; its jobs must have ended. Their records and models stay."""
    who.need_all_projects()
    if name == "default":
        raise Refusal(422, "the default project stays", path="name")
    here.store.delete_project(name)
