"""`thresher submit | list | describe | status | logs | cancel`: jobs in the service's queue, or on a Ray cluster.

With --ray a command goes to that Ray cluster; else to the service at THRESHER_URL, if that is set; else to the Ray
cluster at RAY_API_SERVER_ADDRESS.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import SpecError
from orchestrator.printing import columns, show, time_text

Spec = Annotated[Path, typer.Argument(help="The job spec: YAML or JSON.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: --set train.epochs=2", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
RayUrl = Annotated[str | None, typer.Option("--ray", help="Ray's dashboard address, http://head:8265.")]
ENDS = {"SUCCEEDED": 0, "FAILED": 1, "CANCELLED": 130}
"""Exit codes for a job that was followed to its end."""


def submit(
    spec: Spec,
    ray: RayUrl = None,
    runs: Annotated[str, typer.Option("--runs", help="With --ray: the storage.")] = "runs",
    overrides: Overrides = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay, print the log, end with the job's exit code.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="With --ray: return at once.")] = False,
    key: Annotated[
        str | None, typer.Option(help="To the service: the same key gives the same job, however often it is sent.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="With --ray: the cluster's Python that has thresher installed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a job at the service, and return; or run it on a Ray cluster (--ray), and follow it to its end."""
    from jobs.spec import JobSpec

    parsed = JobSpec.load(spec, overrides)
    if address := ray_address(ray):
        from orchestrator import submission

        jobs = submission.RemoteJobs(address)
        job_id = jobs.submit(parsed, runs=runs, python=python)
        if as_json or detach:
            show({"job_id": job_id, "ray": jobs.address}, [job_id], as_json)
        if not detach:
            raise typer.Exit(jobs.follow(job_id, sys.stderr if as_json else sys.stdout))
        return
    with _client() as client:
        job = client.submit(parsed, key=key)
        show(job.to_json(), [job.id], as_json)
        if follow:
            raise typer.Exit(_follow(client, job.id, sys.stderr if as_json else sys.stdout))


def list_jobs(
    project: Annotated[str | None, typer.Option(help="Only of this project.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only in this state; may be given several times.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List the service's jobs, newest first."""
    from itertools import islice

    with _client() as client:
        states = tuple(each.upper() for each in state or ())
        every = client.all_jobs(project=project, states=states, name=name, limit=min(limit, 200))
        jobs = list(islice(every, limit))
    rows = [(job.id, job.state, job.project, str(job.priority), time_text(job.submitted_ms), _why(job)) for job in jobs]
    head = ("JOB", "STATE", "PROJECT", "PRIORITY", "SUBMITTED", "")
    show({"jobs": [job.to_json() for job in jobs]}, columns([head, *rows]), as_json)


def describe(job_id: Annotated[str, typer.Argument(metavar="JOB")], as_json: Json = False) -> None:
    """Show a job of the service: its state and why, its attempts, and what came out."""
    with _client() as client:
        job = client.describe(job_id)
    show(job.to_json(), _detail_lines(job), as_json)


def status(job_id: Annotated[str, typer.Argument(metavar="JOB")], ray: RayUrl = None, as_json: Json = False) -> None:
    """Show the state of a submitted job."""
    if address := ray_address(ray):
        from orchestrator import submission

        state = submission.RemoteJobs(address).status(job_id)
        reason = f" ({state['message']})" if state["message"] else ""
        show(state, [f"{state['job_id']}: {state['state']}{reason}"], as_json)
        return
    with _client() as client:
        job = client.describe(job_id)
    show({"job_id": job.id, "state": job.state, "message": _why(job)}, [_state_line(job)], as_json)


def logs(
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    ray: RayUrl = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; then with its exit code.")
    ] = False,
) -> None:
    """Print the log of a submitted job."""
    if address := ray_address(ray):
        from orchestrator import submission

        jobs = submission.RemoteJobs(address)
        if follow:
            raise typer.Exit(jobs.follow(job_id, sys.stdout))
        typer.echo("\n".join(jobs.log(job_id)))
        return
    with _client() as client:
        if follow:
            raise typer.Exit(_follow(client, job_id, sys.stdout))
        for text in client.logs(job_id):
            typer.echo(text, nl=False)


def cancel(job_id: Annotated[str, typer.Argument(metavar="JOB")], ray: RayUrl = None, as_json: Json = False) -> None:
    """Stop a submitted job; it can be resumed. On a Ray cluster: wait until it has stopped."""
    if address := ray_address(ray):
        from orchestrator import submission

        state = submission.RemoteJobs(address).cancel(job_id)
        show(state, [f"{state['job_id']}: {state['state']}"], as_json)
        return
    with _client() as client:
        job = client.cancel(job_id)
    show(job.to_json(), [_state_line(job)], as_json)


def resume_there(job_id: str, as_json: bool) -> None:
    """`thresher resume JOB` at the service: a new job that goes on in the old one's run."""
    with _client() as client:
        job = client.resume(job_id)
    show(job.to_json(), [job.id], as_json)


def belongs_to_service(name: str, chosen: bool) -> bool:
    """Whether `thresher resume NAME` means a job of the service: with THRESHER_URL set, an id without more.

    A path, or one of the options that say where (`chosen`), means a run here.
    """
    from orchestrator.client.sending import URL_VARIABLE

    is_path = os.sep in name or name in (".", "..")
    return bool(os.environ.get(URL_VARIABLE)) and not is_path and not chosen


def ray_address(given: str | None) -> str | None:
    """The Ray cluster that a command goes to; None: it goes to the service. Raises SpecError where neither is named."""
    from orchestrator.client.sending import URL_VARIABLE

    if given:
        return given
    if os.environ.get(URL_VARIABLE):
        return None
    if address := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return address
    what = "the address of Ray's dashboard is needed, or THRESHER_URL and THRESHER_TOKEN of a service"
    raise SpecError.at("--ray", what, allowed="http://head:8265")


def _client() -> Any:
    from orchestrator.client import Client

    return Client()


def _follow(client: Any, job_id: str, out: Any) -> int:
    told = ""

    def tell(job: Any) -> None:
        nonlocal told
        line = _state_line(job)
        if line != told and (job.attempt is None or job.unreachable_since_ms is not None):
            typer.echo(line, err=True)
        told = line

    for text in client.logs(job_id, follow=True, on_job=tell):
        out.write(text)
        out.flush()
    job = client.describe(job_id)
    typer.echo(_state_line(job), err=True)
    return ENDS.get(job.state, 1)


def _state_line(job: Any) -> str:
    why = _why(job)
    return f"{job.id}: {job.state}" + (f" ({why})" if why else "")


def _why(job: Any) -> str:
    """Why it is in its state, in a few words."""
    if job.unreachable_since_ms is not None:
        return f"not reached since {time_text(job.unreachable_since_ms)}"
    if job.ended:
        return ": ".join(filter(None, (job.cause, job.detail)))
    return job.reason or job.cause or ""


def _detail_lines(job: Any) -> list[str]:
    each = " ".join(f"{amount:g} {name}" for name, amount in job.demand.each.items())
    rows = [
        ("job", job.id),
        ("state", _state_line(job).removeprefix(f"{job.id}: ")),
        ("project", f"{job.project}, priority {job.priority}"),
        ("asks for", f"{job.demand.workers} × {each}"),
        ("submitted", f"{time_text(job.submitted_ms)} by {job.submitted_by or '?'}"),
        ("started", time_text(job.started_ms)),
        ("ended", time_text(job.ended_ms)),
        ("run", job.run_dir or ""),
        ("resumes", job.resumes or ""),
    ]
    for attempt in job.attempts:
        ended = ": ".join(filter(None, (attempt.outcome, attempt.cause, attempt.detail)))
        rows.append((f"attempt {attempt.number}", f"{attempt.state} on {', '.join(attempt.placement)}  {ended}"))
    if job.summary is not None:
        metric = (job.summary.get("measurement") or {}).get("metric") or {}
        value = metric.get("value")
        shown = f", {metric.get('name')} {value:.4f} on {metric.get('split')}" if isinstance(value, float) else ""
        rows.append(("selected", f"{job.summary['selected']}{shown}"))
    return columns([row for row in rows if row[1]])
