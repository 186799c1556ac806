"""Whether the service lives, whether it can take work, and its figures for Prometheus."""

from collections import Counter

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator.service.answers import JsonAnswer, Refusal
from orchestrator.service.here import Here, Viewer, refusals
from orchestrator.store import StoreUnavailable

router = APIRouter(tags=["health"])

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers; needs no token."""
    return {"status": "ok"}


@router.get("/readyz", response_class=Response, responses={503: {"description": "not ready; the parts say which"}})
def readyz(here: Here) -> Response:
    """The database answers and the controller lives; needs no token. The cluster may be away: jobs wait for it."""
    parts = {"store": True, "controller": here.controller_alive()}
    try:
        here.store.ping()
    except StoreUnavailable:
        parts["store"] = False
    return JsonAnswer({"ready": all(parts.values()), **parts}, 200 if all(parts.values()) else 503)


@router.get("/metrics", response_class=Response, responses=refusals(403))
def metrics(here: Here, who: Viewer) -> Response:
    """For Prometheus, with a token of all projects (any role)."""
    if who.token.project is not None:
        raise Refusal(403, "the token is of one project", allowed="a token of all projects")
    live = Counter((job.project, job.state.value) for job in here.store.live_jobs())
    nodes, _ = here.seen.look()
    text = here.figures.text(
        dict(live),
        here.streams.total,
        controller=here.controller_alive(),
        lease_age_s=here.lease_age_s(),
        nodes=None if nodes is None else len(nodes),
    )
    return Response(text, headers={"Content-Type": _PROMETHEUS})
