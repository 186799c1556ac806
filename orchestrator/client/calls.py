"""What can be asked of the service, as records: the two clients differ only in how they send them."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from orchestrator.client import shapes
from orchestrator.client.shapes import Role

T = TypeVar("T")
API = "/api/v1"
KEY_HEADER = "Idempotency-Key"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    parse: Callable[[Any], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Whether to send it twice does no more than to send it once."""


def _json(document: Any) -> dict[str, Any]:
    return {"content": json.dumps(document).encode(), "headers": {"Content-Type": "application/json"}}


def _params(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _at(*parts: str | int) -> str:
    return API + "".join("/" + quote(str(part), safe="") for part in parts)


def submit(spec: dict[str, Any], key: str, code: str | None) -> Call[shapes.Job]:
    sent = _json(spec)
    headers = {**sent["headers"], KEY_HEADER: key}
    return Call("POST", _at("jobs"), shapes.Job.from_json, _params(code=code), content=sent["content"], headers=headers)


def upload_code(archive: bytes, sha256: str, project: str | None) -> Call[shapes.CodeReceipt]:
    headers = {"Content-Type": "application/gzip"}
    parse = shapes.CodeReceipt.from_json
    return Call("PUT", _at("code", sha256), parse, _params(project=project), content=archive, headers=headers)


def jobs(
    project: str | None, states: tuple[str, ...], name: str | None, since_ms: int | None, limit: int, cursor: str | None
) -> Call[shapes.JobPage]:
    params = _params(
        project=project, state=list(states) or None, name=name, since_ms=since_ms, limit=limit, cursor=cursor
    )
    return Call("GET", _at("jobs"), shapes.JobPage.from_json, params)


def job(job_id: str) -> Call[shapes.JobDetail]:
    return Call("GET", _at("jobs", job_id), shapes.JobDetail.from_json)


def cancel(job_id: str) -> Call[shapes.Job]:
    return Call("POST", _at("jobs", job_id, "cancel"), shapes.Job.from_json)


def resume(job_id: str, key: str) -> Call[shapes.Job]:
    return Call("POST", _at("jobs", job_id, "resume"), shapes.Job.from_json, headers={KEY_HEADER: key})


def metrics(job_id: str, after: int, limit: int) -> Call[shapes.MetricPage]:
    return Call("GET", _at("jobs", job_id, "metrics"), shapes.MetricPage.from_json, _params(after=after, limit=limit))


def report(job_id: str) -> Call[dict[str, Any]]:
    return Call("GET", _at("jobs", job_id, "report"), dict)


def artifacts(job_id: str) -> Call[shapes.ArtifactList]:
    return Call("GET", _at("jobs", job_id, "artifacts"), shapes.ArtifactList.from_json)


def artifact_file(job_id: str, artifact: str, path: str) -> str:
    return _at("jobs", job_id, "artifacts", artifact) + "/" + quote(path)


def events(job_id: str | None, after: int, limit: int) -> Call[shapes.EventPage]:
    place = _at("events") if job_id is None else _at("jobs", job_id, "events")
    return Call("GET", place, shapes.EventPage.from_json, _params(after=after, limit=limit))


def models(project: str | None, name: str | None) -> Call[shapes.ModelPage]:
    return Call("GET", _at("models"), shapes.ModelPage.from_json, _params(project=project, name=name))


def model(project: str, name: str, reference: str) -> Call[shapes.ModelVersion]:
    return Call("GET", _at("models", project, name, reference), shapes.ModelVersion.from_json)


def model_file(project: str, name: str, version: int, path: str) -> str:
    return _at("models", project, name, version, "files") + "/" + quote(path)


def set_alias(project: str, name: str, alias: str, version: int) -> Call[shapes.ModelVersion]:
    sent = _json({"version": version})
    return Call("PUT", _at("models", project, name, "aliases", alias), shapes.ModelVersion.from_json, **sent)


def delete_alias(project: str, name: str, alias: str) -> Call[None]:
    return Call("DELETE", _at("models", project, name, "aliases", alias), _nothing)


def projects() -> Call[shapes.ProjectList]:
    return Call("GET", _at("projects"), shapes.ProjectList.from_json)


def project(name: str) -> Call[shapes.Project]:
    return Call("GET", _at("projects", name), shapes.Project.from_json)


def put_project(name: str, settings: shapes.ProjectSettings) -> Call[shapes.Project]:
    return Call("PUT", _at("projects", name), shapes.Project.from_json, **_json(settings.to_json()))


def delete_project(name: str) -> Call[None]:
    return Call("DELETE", _at("projects", name), _nothing)


def tokens(project: str | None) -> Call[shapes.TokenList]:
    return Call("GET", _at("tokens"), shapes.TokenList.from_json, _params(project=project))


def create_token(name: str, role: Role, project: str | None, expires_s: int | None) -> Call[shapes.NewToken]:
    sent = _json({"name": name, "role": role, "project": project, "expires_s": expires_s})
    # A lost reply would be a token that nobody knows: it is not asked for twice without being seen.
    return Call("POST", _at("tokens"), shapes.NewToken.from_json, repeatable=False, **sent)


def revoke_token(token_id: str) -> Call[None]:
    return Call("DELETE", _at("tokens", token_id), _nothing)


def me() -> Call[shapes.Token]:
    return Call("GET", _at("me"), shapes.Token.from_json)


def cluster() -> Call[shapes.ClusterState]:
    return Call("GET", _at("cluster"), shapes.ClusterState.from_json)


def _nothing(document: Any) -> None:
    return None


_REFERENCE = re.compile(r"^(?:(?P<project>[^/@]+)/)?(?P<name>[^/@]+)(?:@(?P<reference>[^/@]+))?$")


def model_reference(text: str, project: str) -> tuple[str, str, str]:
    """(project, name, version or alias) of [PROJECT/]NAME[@ALIAS]. Raises SpecError.

    >>> model_reference("digits@production", "default")
    ('default', 'digits', 'production')
    """
    from jobs.errors import SpecError

    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise SpecError.at("MODEL", "no reference of a model", text, "[PROJECT/]NAME[@VERSION or @ALIAS]")
    return found["project"] or project, found["name"], found["reference"] or "latest"
