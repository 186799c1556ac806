"""The service in this process: a store of its own, a cluster and logs that do what a test tells them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.errors import ClusterUnreachable
from orchestrator.scheduling import Node, Project
from orchestrator.service.app import create_app
from orchestrator.service.settings import Limits, ServiceSettings
from orchestrator.store import AttemptRecord, JobRecord, Store
from tests.orchestrator.store.new_store import new_store

DIGITS: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "mlp"},
    "train": {"epochs": 1},
}


@dataclass
class FakeCluster:
    """Nodes that a test can take away."""

    there: tuple[Node, ...] = (Node("a", {"CPU": 4000}), Node("b", {"CPU": 4000}))
    away: bool = False

    def nodes(self) -> tuple[Node, ...]:
        if self.away:
            raise ClusterUnreachable("no Ray answers")
        return self.there


@dataclass
class FakeLogs:
    """What attempts have written, by submission id."""

    texts: dict[str, bytes] = field(default_factory=dict)
    away: bool = False

    def read(self, job: JobRecord, attempt: AttemptRecord, offset: int, most: int) -> bytes:
        if self.away:
            raise ClusterUnreachable("no Ray answers")
        return self.texts.get(attempt.submission_id, b"")[offset : offset + most]


@dataclass
class Caller:
    """One token's requests."""

    http: TestClient
    secret: str

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}"} | options.pop("headers", {})
        place = path if path.startswith("//") else f"/api/v1{path}"
        return self.http.request(
            method, place.removeprefix("/") if path.startswith("//") else place, headers=headers, **options
        )


@dataclass
class World:
    """The service, and who may ask it."""

    store: Store
    settings: ServiceSettings
    cluster: FakeCluster
    logs: FakeLogs
    http: TestClient
    admin: Caller
    woken: list[bool]

    def token(self, role: str, project: str | None = None, expires_ms: int | None = None) -> Caller:
        if project is not None and self.store.project(project) is None:
            self.store.put_project(Project(project))
        _, secret = self.store.create_token(project, role, f"a-{role}", expires_ms)  # type: ignore[arg-type]
        return Caller(self.http, secret)

    def submit(self, caller: Caller | None = None, **changes: Any) -> str:
        answer = (caller or self.admin)("POST", "/jobs", json=DIGITS | changes)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def run_dir(self, job_id: str) -> Path:
        folder = self.settings.runs / job_id
        folder.mkdir(exist_ok=True)
        return folder


LIMITS = Limits(requests_per_s=0, code_bytes=200_000, code_files=50, code_unpacked_bytes=1 << 20, body_s=5)


@pytest.fixture
def limits() -> Limits:
    return LIMITS


@pytest.fixture
def world(tmp_path: Path, limits: Limits) -> Iterator[World]:
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    settings = ServiceSettings(tmp_path / "runs", (tmp_path / "data",), limits)
    cluster, logs, woken = FakeCluster(), FakeLogs(), list[bool]()
    with new_store(tmp_path / "thresher.db") as store:
        first = store.create_first_token()
        assert first is not None
        app = create_app(store, settings, lambda: woken.append(True), cluster, logs)
        with TestClient(app, raise_server_exceptions=False) as http:
            yield World(store, settings, cluster, logs, http, Caller(http, first[1]), woken)
