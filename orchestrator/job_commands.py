"""`thresher submit | list | describe | status | logs | cancel`: jobs in the service's queue, or on a Ray cluster.

With --ray a command goes to that Ray cluster; else to the service at THRESHER_URL, if that is set; else to the Ray
cluster at RAY_API_SERVER_ADDRESS.
"""

import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

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
_ID_SIGNS = 12


def submit(
    spec: Spec,
    ray: RayUrl = None,
    runs: Annotated[str | None, typer.Option("--runs", help="With --ray: the storage; default: runs.")] = None,
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

        _refuse("the service", "THRESHER_URL, and no --ray", ("--key", key))
        jobs = submission.RemoteJobs(address)
        job_id = jobs.submit(parsed, runs=runs or "runs", python=python)
        if as_json or detach:
            show({"job_id": job_id, "ray": jobs.address}, [job_id], as_json)
        if not detach:
            raise typer.Exit(jobs.follow(job_id, sys.stderr if as_json else sys.stdout))
        return
    _refuse("a Ray cluster", "with --ray URL", ("--runs", runs), ("--python", python))
    with _client() as client:
        job = client.submit(parsed, key=key)
        show(_document(job), [job.id], as_json)
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
    from typing import get_args

    from jobs.spec.problems import nearest
    from orchestrator.client.shapes import JobState

    states = tuple(each.upper() for each in state or ())
    for each in states:
        if each not in get_args(JobState):
            known = [name.lower() for name in get_args(JobState)]
            raise SpecError.at("--state", "no such state", each.lower(), ", ".join(known), nearest(each.lower(), known))
    with _client() as client:
        every = client.all_jobs(project=project, states=states, name=name, limit=min(limit, 200))
        jobs = list(islice(every, limit))
    rows = [(job.id, job.state, job.project, str(job.priority), time_text(job.submitted_ms), _why(job)) for job in jobs]
    head = ("JOB", "STATE", "PROJECT", "PRIORITY", "SUBMITTED", "")
    show([_document(job) for job in jobs], columns([head, *rows]), as_json)


def describe(job_id: Annotated[str, typer.Argument(metavar="JOB")], as_json: Json = False) -> None:
    """Show a job of the service: its state and why, its attempts, and what came out."""
    with _client() as client:
        job = client.describe(job_id)
    show(_document(job), _detail_lines(job), as_json)


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {job_id, state, log}; with -f, once it ended.")
    ] = False,
) -> None:
    """Print the log of a submitted job. With --json and -f it is also told on stderr while it grows."""
    written = _Copied(sys.stderr if follow else None) if as_json else sys.stdout
    code = 0
    if address := ray_address(ray):
        from orchestrator import submission

        jobs = submission.RemoteJobs(address)
        if follow:
            code = jobs.follow(job_id, written)
        else:
            written.write("".join(f"{line}\n" for line in jobs.log(job_id)))
        state = jobs.status(job_id)["state"] if as_json else ""
    else:
        with _client() as client:
            if follow:
                code = _follow(client, job_id, written)
            else:
                for text in client.logs(job_id):
                    written.write(text)
            state = client.describe(job_id).state if as_json else ""
    if isinstance(written, _Copied):
        show({"job_id": job_id, "state": state, "log": written.getvalue()}, [], as_json)
    raise typer.Exit(code)


class _Copied(io.StringIO):
    """Keeps what is written, and passes it on."""

    def __init__(self, to: TextIO | None) -> None:
        super().__init__()
        self._to = to

    def write(self, text: str) -> int:
        if self._to is not None:
            self._to.write(text)
            self._to.flush()
        return super().write(text)


def _document(job: Any) -> dict[str, Any]:
    """A job of the service under --json: the id also under the name that it has everywhere else."""
    return {"job_id": job.id, **job.to_json()}


def _refuse(whom: str, allowed: str, *options: tuple[str, str | None]) -> None:
    """Options that the other kind of place would not look at. Raises SpecError."""
    for name, value in options:
        if value is not None:
            raise SpecError.at(name, f"is for {whom} alone", value, allowed)


def cancel(job_id: Annotated[str, typer.Argument(metavar="JOB")], ray: RayUrl = None, as_json: Json = False) -> None:
    """Stop a submitted job; it can be resumed. On a Ray cluster: wait until it has stopped."""
    if address := ray_address(ray):
        from orchestrator import submission

        state = submission.RemoteJobs(address).cancel(job_id)
        show(state, [f"{state['job_id']}: {state['state']}"], as_json)
        return
    with _client() as client:
        job = client.cancel(job_id)
    show(_document(job), [_state_line(job)], as_json)


def resume_there(job_id: str, as_json: bool) -> None:
    """`thresher resume JOB` at the service: a new job that goes on in the old one's run."""
    with _client() as client:
        job = client.resume(job_id)
    show(_document(job), [job.id], as_json)


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
    told = shown = ""

    def tell(job: Any) -> None:
        nonlocal told, shown
        line = _state_line(job)
        if line != told and (job.attempt is None or job.unreachable_since_ms is not None):
            typer.echo(line, err=True)
            shown = line
        told = line

    for text in client.logs(job_id, follow=True, on_job=tell):
        out.write(text)
        out.flush()
    job = client.describe(job_id)
    if _state_line(job) != shown:
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


def _nodes_text(placement: Sequence[str]) -> str:
    """Nodes by the beginnings of their ids, as Ray's dashboard shows them; the whole ids are under --json."""
    counts = Counter(placement)
    return ", ".join(f"{node[:_ID_SIGNS]}{f' × {count}' if count > 1 else ''}" for node, count in counts.items())


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
        rows.append((f"attempt {attempt.number}", f"{attempt.state} on {_nodes_text(attempt.placement)}  {ended}"))
    if job.summary is not None:
        metric = (job.summary.get("measurement") or {}).get("metric") or {}
        value = metric.get("value")
        shown = f", {metric.get('name')} {value:.4f} on {metric.get('split')}" if isinstance(value, float) else ""
        rows.append(("selected", f"{job.summary['selected']}{shown}"))
    return columns([row for row in rows if row[1]])
