"""What every request finds: the store, the settings, and who is asking."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.errors import ClusterUnreachable
from orchestrator.client.shapes import TERMINAL, Role
from orchestrator.scheduling import Node
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.figures import Figures
from orchestrator.service.limits import Buckets, Streams
from orchestrator.service.logs import LogSource
from orchestrator.service.settings import ServiceSettings
from orchestrator.store import JobRecord, Store, TokenRecord

_RANK: dict[Role, int] = {"viewer": 0, "submitter": 1, "admin": 2}
_PLANNERS = 2
_FAILED_PER_S = 2.0
_FAILED_BURST = 20
_SEEN_S = 5.0


class ClusterNodes(Protocol):
    """What the service asks of a cluster."""

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that live. Raises ClusterUnreachable."""


@dataclass
class Seen:
    """The cluster's nodes as they were seen last. No request waits for a cluster, but for the very first look."""

    cluster: ClusterNodes | None
    _looker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "cluster"))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: "Future[tuple[tuple[Node, ...] | None, str]] | None" = None
    _next: "Future[tuple[tuple[Node, ...] | None, str]] | None" = None
    _asked: float = 0.0

    def look(self) -> tuple[tuple[Node, ...] | None, str]:
        """The nodes, or None and why they are not known."""
        if self.cluster is None:
            return None, "no cluster was named"
        with self._lock:
            if self._next is not None and self._next.done():
                self._last, self._next = self._next, None
            if self._next is None and (self._last is None or time.monotonic() - self._asked >= _SEEN_S):
                self._asked = time.monotonic()
                self._next = self._looker.submit(self._ask, self.cluster)
            found = self._last or self._next
        assert found is not None
        return found.result()

    @staticmethod
    def _ask(cluster: ClusterNodes) -> tuple[tuple[Node, ...] | None, str]:
        try:
            return cluster.nodes(), ""
        except ClusterUnreachable as error:
            return None, str(error)

    def close(self) -> None:
        self._looker.shutdown(wait=False, cancel_futures=True)


@dataclass
class Service:
    """Everything that lives as long as the service does."""

    store: Store
    settings: ServiceSettings
    wake: Callable[[], None]
    seen: Seen
    logs: LogSource
    figures: Figures
    buckets: Buckets
    failures: Buckets
    streams: Streams
    controller_alive: Callable[[], bool]
    lease_age_s: Callable[[], float | None]
    planners: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PLANNERS, "plan"))
    heavy_planners: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "plan-heavy"))
    """For models that are built to be planned; they must not hold up the others."""
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "logs"))
    """For logs: Ray may take its time."""
    stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(
        cls,
        store: Store,
        settings: ServiceSettings,
        wake: Callable[[], None],
        cluster: ClusterNodes | None,
        logs: LogSource,
        controller_alive: Callable[[], bool] = lambda: True,
        lease_age_s: Callable[[], float | None] = lambda: None,
    ) -> "Service":
        limits = settings.limits
        return cls(
            store=store,
            settings=settings,
            wake=wake,
            seen=Seen(cluster),
            logs=logs,
            figures=Figures(),
            buckets=Buckets(limits.requests_per_s, limits.burst),
            failures=Buckets(_FAILED_PER_S, _FAILED_BURST),
            streams=Streams(limits.streams),
            controller_alive=controller_alive,
            lease_age_s=lease_age_s,
        )

    def close(self) -> None:
        """Ends streams, and waits for plans that are being made."""
        self.stopping.set()
        self.planners.shutdown(cancel_futures=True)
        self.heavy_planners.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.seen.close()


@dataclass(frozen=True)
class Caller:
    """Whose token it is, and what it may do."""

    token: TokenRecord

    @property
    def projects(self) -> tuple[str, ...] | None:
        """None: all."""
        return None if self.token.project is None else (self.token.project,)

    def sees(self, project: str | None) -> bool:
        return self.token.project is None or self.token.project == project

    def may(self, role: Role) -> bool:
        return _RANK[self.token.role] >= _RANK[role]

    def need(self, role: Role) -> None:
        """Raises Refusal (403)."""
        if not self.may(role):
            raise Refusal(403, f"the token's role is {self.token.role}", allowed=role)

    def need_all_projects(self) -> None:
        """Raises Refusal (403)."""
        self.need("admin")
        if self.token.project is not None:
            raise Refusal(403, "the token is of one project", allowed="an admin of all projects")

    def only(self, project: str | None) -> tuple[str, ...] | None:
        """The projects to look through, where one may be asked for. Raises Refusal (404)."""
        if project is None:
            return self.projects
        if not self.sees(project):
            raise not_found(f"project: {project}")
        return (project,)


async def service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


_bearer = HTTPBearer(auto_error=False, description="A token of `thresher token create`.")


def caller(
    request: Request,
    here: Annotated[Service, Depends(service)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Who asks. Raises Refusal: 401 without a valid token, 429 for too many requests, or too many bad tokens."""
    found = here.store.token_by_secret(credentials.credentials) if credentials is not None else None
    if found is None:
        here.failures.take(request.client.host if request.client else "unknown")
        problem = "a token is needed" if credentials is None else "the token is not valid: unknown, expired or revoked"
        raise Refusal(401, problem, allowed="Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})
    here.buckets.take(found.id)
    return Caller(found)


def submitter(who: Annotated[Caller, Depends(caller)]) -> Caller:
    who.need("submitter")
    return who


def admin(who: Annotated[Caller, Depends(caller)]) -> Caller:
    who.need("admin")
    return who


Here = Annotated[Service, Depends(service)]
Viewer = Annotated[Caller, Depends(caller)]
Submitter = Annotated[Caller, Depends(submitter)]
Admin = Annotated[Caller, Depends(admin)]


def job_of(here: Service, who: Caller, job_id: str) -> JobRecord:
    """The job. Raises Refusal (404), also for one of another project."""
    found = here.store.job(job_id)
    if found is None or not who.sees(found.project):
        raise not_found(f"job: {job_id}")
    return found


def ended(job: JobRecord) -> bool:
    return str(job.state) in TERMINAL


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: answers that refuse."""
    words = {
        400: "not understood",
        401: "no valid token",
        403: "the token's role does not allow it",
        404: "there is none, or it is another project's",
        408: "the body did not arrive in time",
        409: "not in this state",
        413: "too large",
        415: "a kind of content that is not read",
        416: "no such range",
        422: "wrong, with the path of each problem",
        429: "too many requests; Retry-After says when",
        503: "the database or the cluster does not answer; Retry-After says when to ask again",
    }
    schema = {"$ref": "#/components/schemas/Refused"}
    always = (401, 422, 429, 503)
    return {
        status: {"description": words[status], "content": {"application/json": {"schema": schema}}}
        for status in sorted({*statuses, *always})
    }
