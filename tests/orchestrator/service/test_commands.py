"""The command line against the service, in this process: what it prints, and what it refuses before it asks."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from jobs.errors import SpecError
from orchestrator import job_commands, service_commands
from orchestrator.cli import app
from orchestrator.client import Client
from orchestrator.service.settings import Listen
from orchestrator.store import JobState, NewModel
from tests.orchestrator.service.conftest import DIGITS, World
from tests.orchestrator.store.small_jobs import ended


class Inside(httpx.BaseTransport):
    """To the service in this process. Its own transport reads answers with another kind of stream."""

    def __init__(self, world: World) -> None:
        self._http = world.http

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        answer = self._http.request(request.method, str(request.url), content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def call(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    def client() -> Client:
        return Client("http://127.0.0.1", world.admin.secret, transport=Inside(world))

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words), standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        assert (done.return_value or 0) == code
        return done.stdout

    for module in (job_commands, service_commands):
        monkeypatch.setattr(module, "_client", client)
    monkeypatch.setenv("THRESHER_URL", "http://127.0.0.1")
    return run


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "job.json").write_text(json.dumps(DIGITS | {"resources": {"workers": 2}}))
    return str(tmp_path / "job.json")


def test_a_job_has_its_id_under_one_name_in_every_document(call: Any, spec: str) -> None:
    job = json.loads(call("submit", spec, "--json"))["job_id"]
    listed = json.loads(call("list", "--json"))
    assert [(each["job_id"], each["name"], each["state"]) for each in listed] == [(job, "small", "QUEUED")]
    for words in (("describe", job), ("status", job), ("cancel", job)):
        assert json.loads(call(*words, "--json"))["job_id"] == job
    assert json.loads(call("resume", job, "--json"))["job_id"] != job


def test_a_log_as_a_document(call: Any, spec: str, world: World) -> None:
    job = call("submit", spec).strip()
    assert json.loads(call("logs", job, "--json")) == {"job_id": job, "state": "QUEUED", "log": ""}
    lease = world.store.acquire_lease("here", 15.0)
    assert lease is not None
    record = world.store.job(job)
    assert record is not None
    attempt = ended(world.store, lease, JobState.CANCELLED, record).attempt
    assert attempt is not None
    world.logs.texts[attempt.submission_id] = "½ done\n".encode()
    said = json.loads(call("logs", "-f", job, "--json", code=130))
    assert said == {"job_id": job, "state": "CANCELLED", "log": "½ done\n"}
    assert call("logs", job) == "½ done\n"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("list", "--state", "runing"), r"--state: no such state \(got 'runing'\).* did you mean 'running'"),
        (("submit", "SPEC", "--python", "/x/python"), "--python: is for a Ray cluster alone"),
        (("submit", "SPEC", "--runs", "elsewhere"), "--runs: is for a Ray cluster alone"),
        (("submit", "SPEC", "--key", "k", "--ray", "http://127.0.0.1:1"), "--key: is for the service alone"),
        (("project", "set", "two words"), "PROJECT: has characters"),
        (("model", "alias", "digits", "../x"), "ALIAS: has characters"),
        (("model", "alias", "digits", "3"), "ALIAS: has characters"),
        (("model", "unalias", "digits@nobody"), "no such model: default/digits@nobody"),
        (("model", "unalias", "digits@latest"), "this is no alias .*; allowed: default/digits@production"),
    ],
)
def test_what_is_refused_in_words(words: tuple[str, ...], fault: str, call: Any, spec: str, world: World) -> None:
    made = world.submit(name="digits")
    lease = world.store.acquire_lease("here", 15.0)
    assert lease is not None
    world.store.record_models(lease, made, [NewModel("digits", "dense", str(world.run_dir(made)), "hash")])
    call("model", "alias", "digits@1", "production")
    with pytest.raises(SpecError, match=fault):
        call(*(spec if word == "SPEC" else word for word in words))
    assert call("list").count("\n") == 2
    assert call("model", "unalias", "digits@production").strip() == "deleted digits@production"


def test_nodes_are_told_by_the_beginnings_of_their_ids(call: Any, spec: str, world: World) -> None:
    job = call("submit", spec).strip()
    lease = world.store.acquire_lease("here", 15.0)
    assert lease is not None
    node = "07738b7012322b12318b327a7740b05a2b94f66b"
    world.store.plan_attempt(lease, job, (node, node), str(world.run_dir(job)), "run")
    assert "PLANNED on 07738b701232 × 2" in call("describe", job)
    assert node in call("describe", job, "--json")


def test_files_that_tls_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(SpecError, match="--tls-cert: TLS cannot use this certificate with its key"):
        Listen("0.0.0.0", 0, tmp_path / "cert.pem", tmp_path / "cert.pem")
