"""The application: its rooms, and what stands at the door."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from orchestrator.client import shapes
from orchestrator.client.calls import API
from orchestrator.service import answers
from orchestrator.service.here import ClusterNodes, Service
from orchestrator.service.logs import LogSource
from orchestrator.service.middleware import AccessLog, BoundedBodies, SafeHeaders
from orchestrator.service.routes import artifacts, cluster, events, health, jobs, logs, models, projects, tokens
from orchestrator.service.settings import ServiceSettings
from orchestrator.store import Store

_DESCRIPTION = "A truthful, durable queue for training jobs on a Ray cluster. See docs/service.md."


def create_app(
    store: Store,
    settings: ServiceSettings,
    wake: Callable[[], None],
    cluster_nodes: ClusterNodes | None,
    log_source: LogSource,
    controller_alive: Callable[[], bool] = lambda: True,
    lease_age_s: Callable[[], float | None] = lambda: None,
) -> FastAPI:
    """The service over a store that is open; `app.state.service` is what lives with it.

    Args:
        wake: tells the controller that something was asked for.
        cluster_nodes: None: no cluster is known, and nothing is refused for want of nodes.
        controller_alive: for readiness.
        lease_age_s: since the controller here renewed its lease; None: it does not lead.
    """
    service = Service.of(store, settings, wake, cluster_nodes, log_source, controller_alive, lease_age_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Thresher",
        description=_DESCRIPTION,
        version="1",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    answers.install(app)
    for room in (jobs, logs, events, artifacts, models, projects, tokens, cluster):
        app.include_router(room.router, prefix=API)
    app.include_router(health.router)
    # The last one added is the first one asked.
    app.add_middleware(BoundedBodies, limits=settings.limits)
    app.add_middleware(AccessLog, observe=service.figures.request)
    app.add_middleware(SafeHeaders)
    _describe_refusals(app)
    return app


def _describe_refusals(app: FastAPI) -> None:
    """Adds the shape of a refusal to the description, which names it in each answer."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        schema = shapes.Refused.model_json_schema(ref_template="#/components/schemas/{model}")
        known = document.setdefault("components", {}).setdefault("schemas", {})
        known |= {**schema.pop("$defs", {}), "Refused": schema}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
