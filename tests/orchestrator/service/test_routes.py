"""Every route stands in one table, with who may use it and what another project is told: a new one must be added."""

from typing import Any, NamedTuple

import pytest

from orchestrator.store import NewModel
from tests.orchestrator.service.conftest import DIGITS, Caller, World

NOT_THERE = 404
NOTHING_OF_THEIRS = 200
ONLY_ALL_PROJECTS = 403


class Route(NamedTuple):
    role: str
    """The least that it takes."""
    foreign: int
    """What a token of another project gets, whatever its role."""
    body: Any = None


FILE = "artifacts/dense/model.onnx"
ROUTES = {
    "GET /jobs": Route("viewer", NOTHING_OF_THEIRS),
    "POST /jobs": Route("submitter", NOT_THERE, DIGITS | {"project": "theirs"}),
    "PUT /code/{digest}": Route("submitter", NOT_THERE),
    "GET /jobs/{job_id}": Route("viewer", NOT_THERE),
    "POST /jobs/{job_id}/cancel": Route("submitter", NOT_THERE),
    "POST /jobs/{job_id}/resume": Route("submitter", NOT_THERE),
    "GET /jobs/{job_id}/logs": Route("viewer", NOT_THERE),
    "GET /jobs/{job_id}/events": Route("viewer", NOT_THERE),
    "GET /events": Route("viewer", NOTHING_OF_THEIRS),
    "GET /jobs/{job_id}/metrics": Route("viewer", NOT_THERE),
    "GET /jobs/{job_id}/report": Route("viewer", NOT_THERE),
    "GET /jobs/{job_id}/report.html": Route("viewer", NOT_THERE),
    "GET /jobs/{job_id}/artifacts": Route("viewer", NOT_THERE),
    "GET /jobs/{job_id}/artifacts/{artifact}/{path}": Route("viewer", NOT_THERE),
    "GET /models": Route("viewer", NOTHING_OF_THEIRS),
    "GET /models/{project}/{name}/{reference}": Route("viewer", NOT_THERE),
    "GET /models/{project}/{name}/{version}/files/{path}": Route("viewer", NOT_THERE),
    "PUT /models/{project}/{name}/aliases/{alias}": Route("submitter", NOT_THERE, {"version": 1}),
    "DELETE /models/{project}/{name}/aliases/{alias}": Route("submitter", NOT_THERE),
    "GET /projects": Route("viewer", NOTHING_OF_THEIRS),
    "GET /projects/{name}": Route("viewer", NOT_THERE),
    "PUT /projects/{name}": Route("admin", ONLY_ALL_PROJECTS, {}),
    "DELETE /projects/{name}": Route("admin", ONLY_ALL_PROJECTS),
    "GET /me": Route("viewer", NOTHING_OF_THEIRS),
    "GET /tokens": Route("admin", NOTHING_OF_THEIRS),
    "POST /tokens": Route("admin", NOT_THERE, {"name": "x", "role": "viewer", "project": "theirs"}),
    "DELETE /tokens/{token_id}": Route("admin", NOT_THERE),
    "GET /cluster": Route("viewer", NOTHING_OF_THEIRS),
    "GET /metrics": Route("viewer", ONLY_ALL_PROJECTS),
    "GET /api/v1/openapi.json": Route("", 200),
    "GET /healthz": Route("", 200),
    "GET /readyz": Route("", 200),
}
ROLES = ("viewer", "submitter", "admin")
OUTSIDE = ("/metrics", "/healthz", "/readyz", "/api/v1/openapi.json")


@pytest.fixture
def theirs(world: World) -> dict[str, str]:
    """A job, a model and a token of project `theirs`, as values of the parameters of paths."""
    caller = world.token("admin", "theirs")
    job = world.submit(caller, name="their-job")
    folder = world.run_dir(job) / "artifacts" / "dense"
    folder.mkdir(parents=True)
    for file in (folder / "model.onnx", world.run_dir(job) / "report.json", world.run_dir(job) / "report.html"):
        file.write_text('"hidden"')
    lease = world.store.acquire_lease("here", 15.0)
    assert lease is not None
    world.store.record_models(lease, job, [NewModel("their-model", "dense", str(folder), "hash")])
    world.store.set_alias("theirs", "their-model", "production", 1)
    token = caller("GET", "/me").json()["id"]
    return {
        "{job_id}": job,
        "{artifact}": "dense",
        "{path}": "model.onnx",
        "{project}": "theirs",
        "{reference}": "1",
        "{version}": "1",
        "{alias}": "production",
        "{token_id}": token,
        "{digest}": f"{0:064}",
    }


def call(caller: Caller, name: str, values: dict[str, str]) -> Any:
    method, path = name.split(" ")
    for parameter, value in values.items():
        path = path.replace(parameter, value)
    path = path.replace("{name}", "their-model" if "/models/" in path else "theirs")
    query = "?project=theirs" if name.startswith("PUT /code") else ""
    body = ROUTES[name].body
    options = {} if body is None else {"json": body}
    return caller(method, f"/{path}{query}" if path in OUTSIDE else path + query, **options)


def test_every_route_stands_in_the_table(world: World) -> None:
    document = world.http.get("/api/v1/openapi.json").json()
    described = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    described = {each.replace(" /api/v1/", " /") for each in described} | {"GET /api/v1/openapi.json"}
    assert described == set(ROUTES)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path.removeprefix('/api/v1')}"
            described_codes = {int(code) for code in operation["responses"]}
            assert bool(operation.get("security")) == bool(ROUTES[name].role), name
            wanted = {401, 429, 503, *({ROUTES[name].foreign} - {NOTHING_OF_THEIRS})} if ROUTES[name].role else set()
            wanted |= {403} if ROUTES[name].role in ("submitter", "admin") else set()
            assert wanted <= described_codes, (name, wanted - described_codes)
            assert operation.get("description") or not ROUTES[name].role, name


def test_nobody_comes_in_without_a_token(world: World, theirs: dict[str, str]) -> None:
    world.http.app.state.service.failures._rate = 0  # type: ignore[attr-defined]
    for name, route in ROUTES.items():
        answer = call(Caller(world.http, "thr_000000000000_x"), name, theirs)
        assert answer.status_code == (401 if route.role else 200), (name, answer.text)
        assert "hidden" not in answer.text, name


def test_a_lower_role_does_not_suffice(world: World, theirs: dict[str, str]) -> None:
    callers = {role: world.token(role, "theirs") for role in ROLES}
    for name, route in ROUTES.items():
        for role in ROLES[: ROLES.index(route.role)] if route.role else ():
            assert call(callers[role], name, theirs).status_code == 403, (name, role)


def test_another_project_sees_and_changes_nothing(world: World, theirs: dict[str, str]) -> None:
    mine = world.token("admin", "mine")
    before = world.store.job(theirs["{job_id}"])
    for name, route in ROUTES.items():
        answer = call(mine, name, theirs)
        assert answer.status_code == route.foreign, (name, answer.text)
        assert "hidden" not in answer.text, name
        if route.role and route.foreign == NOTHING_OF_THEIRS:
            assert "their" not in answer.text, (name, answer.text)
    assert world.store.job(theirs["{job_id}"]) == before
    model = world.store.model("theirs", "their-model", "production")
    assert model is not None
    assert model.version == 1
    assert world.admin("GET", f"/jobs/{theirs['{job_id}']}/{FILE}").text == '"hidden"'


def test_who_may_is_let_in(world: World, theirs: dict[str, str]) -> None:
    """So that what is refused above is refused for its token alone."""
    lets_in = {"PUT /code/{digest}": 422, "POST /jobs/{job_id}/resume": 409}  # another digest; it has not failed
    for name, route in ROUTES.items():
        if name.startswith("DELETE"):
            continue
        alone = route.foreign == ONLY_ALL_PROJECTS
        answer = call(world.token(route.role or "viewer", None if alone else "theirs"), name, theirs)
        assert answer.status_code in (lets_in.get(name, 200), 201), (name, answer.text)
