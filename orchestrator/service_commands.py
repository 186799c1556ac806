"""`thresher serve`, and what is asked of a running service about tokens, projects and models.

The service is the one at THRESHER_URL, the token that in THRESHER_TOKEN.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import SpecError
from orchestrator.printing import columns, show, time_text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Project = Annotated[str | None, typer.Option("--project", help="Of one project; default: all that the token sees.")]
Reference = Annotated[
    str, typer.Argument(help="[PROJECT/]NAME[@VERSION or @ALIAS]; default: the newest.", metavar="MODEL")
]
tokens = typer.Typer(help="The service's tokens: create, list, revoke.", no_args_is_help=True)
projects = typer.Typer(help="The service's projects and quotas.", no_args_is_help=True)
models = typer.Typer(help="The service's registered models: list, fetch, give aliases.", no_args_is_help=True)
_DAY_S = 86_400


def serve(
    runs: Annotated[str, typer.Option("--runs", help="The storage: runs, stages, data sets, the database.")] = "runs",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8421,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Ray's dashboard, http://head:8265; default: the local cluster's.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="The database: sqlite:///FILE or postgresql+psycopg://…; default: below --runs.")
    ] = None,
    data_root: Annotated[
        list[Path] | None, typer.Option("--data-root", help="Jobs may read files below it; may be given several times.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")] = False,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of one token; 0: no limit.")] = 50.0,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Only answer; jobs are started by another service on the same store.")
    ] = False,
    new_token: Annotated[
        bool, typer.Option("--new-admin-token", help="Make another admin token, where the first one is lost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the queue until SIGTERM: jobs over HTTP, run on a Ray cluster. Prints the first admin token once."""
    import dataclasses

    from orchestrator.runs import Storage
    from orchestrator.service import serving
    from orchestrator.service.controlling import ray_side
    from orchestrator.service.settings import Limits, Listen, ServiceSettings
    from orchestrator.store import Store

    listen = Listen(host, port, tls_cert, tls_key, insecure)
    roots = tuple(path.absolute() for path in data_root or ())
    for root in roots:
        if not root.is_dir():
            raise SpecError.at("--data-root", "no such folder", str(root))
    _log_to_stderr()
    folder = Storage.at(runs).root
    folder.mkdir(parents=True, exist_ok=True)
    limits = dataclasses.replace(Limits(), requests_per_s=rate)
    with Store.open(serving.store_url(folder, store)) as opened:
        side = ray_side(ray, opened, folder, api_only=api_only)
        made = opened.create_token(None, "admin", "admin") if new_token else opened.create_first_token()

        def started(url: str) -> None:
            document = {"url": url, "store": opened.name, "token": made[1] if made else None}
            lines = [f"service  {url}", f"store    {opened.name}", f"ray      {side.address or 'none'}"]
            if made:
                lines += ["", "an admin token, shown this once:", f"export THRESHER_URL={url} THRESHER_TOKEN={made[1]}"]
            show(document, lines, as_json)

        settings = ServiceSettings(folder, roots, limits)
        serving.serve(
            listen,
            settings,
            opened,
            ray=side.jobs,
            cluster=side.cluster,
            controller=side.controller,
            on_start=started,
        )


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    level = logging.DEBUG if os.environ.get("THRESHER_DEBUG") else logging.INFO
    logging.getLogger("orchestrator").setLevel(level)


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="Whose it is, or what it is for.", metavar="NAME")],
    role: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    project: Annotated[str | None, typer.Option(help="The only project that it sees; default: all.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Until it expires; default: never.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is printed, and kept nowhere."""
    if role not in ("viewer", "submitter", "admin"):
        raise SpecError.at("--role", "no such role", role, "viewer, submitter, admin")
    with _client() as client:
        made = client.create_token(name, role, project=project, expires_s=None if days is None else days * _DAY_S)
    show(made.to_json(), [made.secret], as_json)


@tokens.command("list")
def list_tokens(project: Project = None, as_json: Json = False) -> None:
    """List tokens; never their secrets."""
    with _client() as client:
        found = client.tokens(project=project)
    head = ("ID", "NAME", "ROLE", "PROJECT", "EXPIRES", "REVOKED")
    rows = [
        (each.id, each.name, each.role, each.project or "all", time_text(each.expires_ms), time_text(each.revoked_ms))
        for each in found
    ]
    show({"tokens": [each.to_json() for each in found]}, columns([head, *rows]), as_json)


@tokens.command("revoke")
def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """End a token at once."""
    with _client() as client:
        client.revoke_token(token_id)
    show({"revoked": token_id}, [f"revoked {token_id}"], as_json)


@projects.command("list")
def list_projects(as_json: Json = False) -> None:
    """List projects with what each owns."""
    with _client() as client:
        found = client.projects()
    head = ("PROJECT", "POOL", "WEIGHT", "OWNS")
    rows = [(each.name, each.pool, str(each.weight), _quota_text(each.quota)) for each in found]
    show({"projects": [each.to_json() for each in found]}, columns([head, *rows]), as_json)


@projects.command("set")
def set_project(
    name: Annotated[str, typer.Argument(metavar="PROJECT")],
    nominal: Annotated[
        list[str] | None, typer.Option("--quota", help="What it owns: CPU=8; may be given several times.")
    ] = None,
    borrow: Annotated[list[str] | None, typer.Option(help="At most so much beyond: CPU=4.")] = None,
    lend: Annotated[list[str] | None, typer.Option(help="At most so much is lent: CPU=4.")] = None,
    pool: Annotated[str, typer.Option(help="Who shares.")] = "default",
    weight: Annotated[int, typer.Option(min=1, help="Of its share of what is borrowed.")] = 1,
    preempt_within: Annotated[str, typer.Option(help="never or lower_priority.")] = "lower_priority",
    reclaim: Annotated[str, typer.Option(help="never, lower_priority or any.")] = "any",
    as_json: Json = False,
) -> None:
    """Make a project, or change it: what is left out becomes the default."""
    from pydantic import ValidationError

    from orchestrator.client.shapes import NAME, ProjectSettings

    if not re.fullmatch(NAME, name):
        raise SpecError.at("PROJECT", "has characters that are not allowed", name, f"a match of {NAME}")
    if nominal is None and (borrow or lend):
        raise SpecError.at("--quota", "only what is owned can be lent, or borrowed beyond", allowed="--quota CPU=8")
    quota = None
    if nominal is not None:
        quota = {"nominal": _amounts("--quota", nominal)}
        quota |= {"borrowing_limit": _amounts("--borrow", borrow)} if borrow else {}
        quota |= {"lending_limit": _amounts("--lend", lend)} if lend else {}
    document = {"pool": pool, "weight": weight, "quota": quota}
    try:
        settings = ProjectSettings.from_json(document | {"preempt_within": preempt_within, "reclaim": reclaim})
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError.at(".".join(map(str, first["loc"])), first["msg"], first["input"]) from None
    with _client() as client:
        done = client.put_project(name, settings)
    show(done.to_json(), [f"{done.name}: {_quota_text(done.quota)}"], as_json)


@projects.command("delete")
def delete_project(name: Annotated[str, typer.Argument(metavar="PROJECT")], as_json: Json = False) -> None:
    """Remove a project and its tokens; its jobs must have ended."""
    with _client() as client:
        client.delete_project(name)
    show({"deleted": name}, [f"deleted {name}"], as_json)


@models.command("list")
def list_models(
    project: Project = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    as_json: Json = False,
) -> None:
    """List models by name, newest version first."""
    with _client() as client:
        found = client.models(project=project, name=name)
    head = ("MODEL", "VERSION", "ALIASES", "METRIC", "BYTES", "JOB")
    rows = [
        (f"{m.project}/{m.name}", str(m.version), ", ".join(m.aliases), *_measured(m.measurement), m.job) for m in found
    ]
    show({"models": [each.to_json() for each in found]}, columns([head, *rows]), as_json)


@models.command("show")
def show_model(model: Reference, as_json: Json = False) -> None:
    """Show one version: where it comes from, what it measured, its files."""
    project, name, reference = _name(model)
    with _client() as client:
        found = client.model(name, reference, project=project)
    metric, size = _measured(found.measurement)
    lines = [
        f"model     {found.project}/{found.name}@{found.version}  {', '.join(found.aliases)}".rstrip(),
        f"from      job {found.job}, artifact {found.artifact}",
        f"spec      {found.spec_hash}",
        f"data      {found.dataset or '?'}",
        f"measured  {metric}, {size} bytes",
        *(f"file      {file.path}" for file in found.files),
    ]
    show(found.to_json(), lines, as_json)


@models.command("fetch")
def fetch_model(
    model: Reference,
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: a folder NAME-VERSION.")] = None,
    as_json: Json = False,
) -> None:
    """Download a model, and check its digests. The folder, the last line, is what `predict` and `verify` take."""
    project, name, reference = _name(model)
    with _client() as client:
        found = client.model(name, reference, project=project)
        folder = out or Path(f"{name}-{found.version}")
        client.fetch_model(name, str(found.version), project=project, folder=folder)
    document = {"path": str(folder), "model": found.to_json()}
    show(document, [f"{found.project}/{found.name}@{found.version}", str(folder)], as_json)


@models.command("alias")
def alias_model(
    model: Reference,
    alias: Annotated[str, typer.Argument(metavar="ALIAS")],
    as_json: Json = False,
) -> None:
    """Let an alias, such as production, point to this version: thresher model alias digits@3 production."""
    from orchestrator.client.shapes import ALIAS

    project, name, reference = _name(model)
    with _client() as client:
        if not re.fullmatch(ALIAS, alias):
            raise SpecError.at("ALIAS", "has characters that are not allowed", alias, f"a match of {ALIAS}")
        version = client.model(name, reference, project=project).version
        found = client.set_alias(name, alias, version, project=project)
    show(found.to_json(), [f"{found.project}/{found.name}@{alias} is version {found.version}"], as_json)


@models.command("unalias")
def unalias_model(
    model: Annotated[str, typer.Argument(help="[PROJECT/]NAME@ALIAS", metavar="MODEL")], as_json: Json = False
) -> None:
    """Take an alias away; the version stays."""
    project, name, alias = _name(model)
    with _client() as client:
        found = client.model(name, alias, project=project)  # to take away what is not there is no error for the service
        if alias not in found.aliases:
            here = f"{found.project}/{found.name}"
            allowed = ", ".join(f"{here}@{each}" for each in found.aliases) or "an alias"
            raise SpecError.at("MODEL", "this is no alias", model, allowed)
        client.delete_alias(name, alias, project=project)
    show({"deleted": model}, [f"deleted {model}"], as_json)


def _client() -> Any:
    from orchestrator.client import Client

    return Client()


def _name(text: str) -> tuple[str, str, str]:
    from orchestrator.client.calls import model_reference

    return model_reference(text, "default")


def _amounts(option: str, given: list[str]) -> dict[str, float]:
    amounts = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            amounts[name] = float(value)
        except ValueError:
            raise SpecError.at(option, "an amount is written NAME=NUMBER", each, "CPU=8") from None
    return amounts


def _quota_text(quota: Any) -> str:
    if quota is None:
        return "no quota"
    return ", ".join(f"{amount:g} {name}" for name, amount in quota.nominal.items()) or "nothing is limited"


def _measured(measurement: dict[str, Any]) -> tuple[str, str]:
    metric = measurement.get("metric") or {}
    value = metric.get("value")
    shown = f"{metric.get('name')} {value:.4f}" if isinstance(value, int | float) else ""
    return shown, str(measurement.get("bytes", ""))
