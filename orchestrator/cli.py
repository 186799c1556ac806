"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it.

Exit codes: 0 done; 1 the job failed; 2 the spec or the arguments are wrong; 3 the cluster is unreachable;
130 interrupted, and resumable.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import SpecError, ThresherError
from orchestrator import cluster_commands, job_commands, service_commands, store_commands
from orchestrator.printing import show

app = typer.Typer(
    name="thresher",
    help="Turns one job spec into the smallest, fastest model that still meets its accuracy budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets: fetch a known one, look at a spec's.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cluster_commands.app, name="cluster")
app.add_typer(service_commands.tokens, name="token")
app.add_typer(service_commands.projects, name="project")
app.add_typer(service_commands.models, name="model")
app.add_typer(store_commands.app, name="store")

_ARGUMENTS_ARE_WRONG: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Click's base of usage errors: that of the click package, or of the copy that newer versions of typer carry."""

_SAMPLES = "CSV, Parquet, .npz, .npy, IDX, an image or a folder of them; text: .txt (a sample a line), .jsonl, .csv."
Spec = Annotated[Path, typer.Argument(help="The job spec: YAML or JSON.", metavar="SPEC")]
RunName = Annotated[str, typer.Argument(help="A run directory, or an id below --runs.", metavar="RUN")]
Runs = Annotated[str, typer.Option("--runs", help="The storage: runs, stages and data sets live below it.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: --set train.epochs=2", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster that this machine is part of; default: Ray here.")
]
Target = Annotated[
    Path | None,
    typer.Option(help="The host that artifacts are for: a profile that `thresher hardware --json` gave there."),
]


@app.command()
def plan(
    spec: Spec,
    runs: Runs = "runs",
    overrides: Overrides = None,
    target: Target = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A profile: plan for that cluster, which need not be here.", metavar="PROFILE")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="With --cluster: the alternatives alone, in Markdown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the resolved plan: defaults, stages, layout, memory, DeepSpeed config, demand. Changes nothing.

    With --cluster: the layout with the shortest step on that cluster, its time, memory and traffic.
    """
    from jobs.spec import JobSpec
    from orchestrator.planning.plan import plan_job
    from orchestrator.planning.plan_text import plan_lines
    from orchestrator.runs import Storage

    if cluster is not None:
        from orchestrator.planning.cluster_plan import load_and_plan
        from orchestrator.planning.cluster_text import alternatives_table, cluster_lines

        elsewhere = load_and_plan(spec, _with_target(overrides, target) or [], cluster, Storage.at(runs))
        lines = [alternatives_table(elsewhere)] if table else cluster_lines(elsewhere)
        show(elsewhere.to_json(), lines, as_json)
        return
    if table:
        raise SpecError.at("--table", "the table is that of a plan for a cluster", allowed="with --cluster PROFILE")
    found = plan_job(JobSpec.load(spec, _with_target(overrides, target)), Storage.at(runs))
    show(found.to_json(), plan_lines(found), as_json)


@app.command()
def run(
    spec: Spec,
    runs: Runs = "runs",
    overrides: Overrides = None,
    address: Address = None,
    target: Target = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Name of the run directory; default: a new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a job to its report, here or on a Ray cluster. Prints the run directory as its last line."""
    from jobs.spec import JobSpec
    from orchestrator import driver

    parsed = JobSpec.load(spec, _with_target(overrides, target))
    _drive(
        lambda listeners: driver.run(parsed, runs=runs, address=address, listeners=listeners, run_id=run_id),
        runs,
        as_json,
    )


@app.command()
def resume(
    context: typer.Context, name: RunName, runs: Runs = "runs", address: Address = None, as_json: Json = False
) -> None:
    """Go on with a run that was broken off. Complete stages are not run again.

    With THRESHER_URL set, an id is that of a job of the service; a path, --runs or --address mean a run here.
    """
    given = [context.get_parameter_source(option) for option in ("runs", "address")]
    chosen = any(source is not None and source.name == "COMMANDLINE" for source in given)
    if job_commands.belongs_to_service(name, chosen):
        job_commands.resume_there(name, as_json)
        return
    from orchestrator import driver

    _drive(lambda listeners: driver.resume(name, runs=runs, address=address, listeners=listeners), runs, as_json)


def _drive(start: Any, runs: str, as_json: bool) -> None:
    from orchestrator.progress import progress_on
    from orchestrator.report import summary_lines

    seen: dict[str, Any] = {}

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "started":
            seen["run_dir"] = event["run_dir"]

    try:
        with progress_on(sys.stderr, quiet=as_json) as listener:
            report = start((note, listener))
    except ThresherError as error:
        if not as_json:
            raise
        _fail(error, as_json, seen)
        raise typer.Exit(error.exit_code) from error
    document = {"run_dir": seen["run_dir"], "state": report.state, "selected": report.selected}
    document["report"] = report.to_json()
    show(document, [*summary_lines(report), seen["run_dir"]], as_json)


@app.command()
def report(name: RunName, runs: Runs = "runs", as_json: Json = False) -> None:
    """Show a finished run's report; the page itself is report.html in the run directory."""
    from orchestrator.report import read_report, summary_lines
    from orchestrator.runs import Storage

    folder = Storage.at(runs).find_run(name).folder
    found = read_report(folder)
    show(found.to_json(), [*summary_lines(found), str(folder / "report.html")], as_json)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.", metavar="ARTIFACT")],
    datasets: Annotated[Path | None, typer.Option(help="Where prepared data sets lie.")] = None,
    as_json: Json = False,
) -> None:
    """Measure an artifact again: SHA-256, outputs, metric. Exit code 1 if anything differs from its card."""
    from orchestrator import artifacts

    _check_artifact(artifact)
    result = artifacts.verify(artifact, datasets)
    show(
        result,
        [f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}" for check in result["checks"]],
        as_json,
    )
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.", metavar="ARTIFACT")],
    data: Annotated[Path, typer.Option("--data", help=_SAMPLES)],
    out: Annotated[Path | None, typer.Option(help="Write a file instead: .jsonl, .csv or .parquet.")] = None,
    workers: Annotated[int | None, typer.Option(help="Spread the samples over so many workers; default: here.")] = None,
    tensor: Annotated[int, typer.Option(help="Divide each layer over so many workers.")] = 1,
    pipeline: Annotated[int, typer.Option(help="Divide the blocks over so many workers.")] = 1,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Predict for new samples: one line each, or a JSON array. A language model gives each text's next token."""
    from orchestrator import predicted, prediction
    from orchestrator.progress import prediction_progress

    _check_artifact(artifact)
    if out is not None:
        predicted.check_out(out)
    spread = prediction.Spread(workers, tensor, pipeline, address)
    with prediction_progress(sys.stderr, quiet=as_json) as listener:
        scratch = out.absolute().parent if out is not None and address is not None else None
        found = prediction.predict_with(artifact, data, spread, scratch=scratch, on_event=listener)
    if out is None:
        rows = list(found)
        show(rows, [predicted.prediction_line(row) for row in rows], as_json)
        return
    predicted.write_predictions(found, out)
    show({"out": str(out), "predictions": len(found)}, [f"{len(found)} predictions: {out}"], as_json)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="A pack, or an artifact folder with one.", metavar="FILE")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: a folder named as the file.")] = None,
    as_json: Json = False,
) -> None:
    """Restore a pack's files, bit for bit: ONNX, safetensors, recipe. Nothing is written of a damaged one."""
    from jobs.compress.pack import unpack as restore
    from jobs.export.card import file_records
    from jobs.requests import PACK_NAME

    pack = file / PACK_NAME if file.is_dir() else file
    folder = out or pack.with_suffix("")
    if not pack.is_file():
        what = f"{file} holds no {PACK_NAME}" if file.is_dir() else f"no such file: {file}"
        raise SpecError.at("FILE", what, allowed="a pack, or the folder of a packed artifact")
    if folder.exists() and not folder.is_dir():
        raise SpecError.at("--out", f"{folder} is a file", allowed="a folder, which need not be there yet")
    try:
        records = file_records(folder, restore(pack, folder))
    except OSError as error:
        raise SpecError.at("--out", f"{folder} can't be written to: {error.strerror}") from error
    document = {"path": str(folder), "files": [record.to_json() for record in records]}
    lines = [f"{record.sha256}  {record.path}  {record.bytes}" for record in records]
    show(document, [*lines, str(folder)], as_json)


@app.command()
def clean(
    runs: Runs = "runs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove stages and data sets that no run refers to. Delete a run's directory first to free what is its own."""
    from orchestrator.runs import Storage
    from orchestrator.units import format_bytes

    removed, size = Storage.at(runs).clean(dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    lines = [*(f"{verb} {path}" for path in removed), f"{verb} {len(removed)} folders, {format_bytes(size)}"]
    show({"removed": [str(path) for path in removed], "bytes": size, "dry_run": dry_run}, lines, as_json)


@app.command()
def hardware(
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads that are measured with.")] = 1,
    as_json: Json = False,
) -> None:
    """Show what this host can do: instruction sets, and its measured speed in fp32, int8 and fp16. For --target."""
    from orchestrator.host_profile import profile, profile_lines

    found = profile(threads)
    show(found, profile_lines(found), as_json)


def _check_artifact(folder: Path) -> None:
    """Raises SpecError for an argument that is no artifact's folder, before anything heavy is imported."""
    if not folder.is_dir():
        raise SpecError.at("ARTIFACT", f"no such folder: {folder}")
    if not (folder / "artifact.json").is_file():
        what = f"{folder} holds no artifact: artifact.json is missing"
        raise SpecError.at("ARTIFACT", what, allowed="a folder of RUN/artifacts; a packed one as it is, not unpacked")


def _with_target(overrides: list[str] | None, target: Path | None) -> list[str] | None:
    from orchestrator.host_profile import target_override

    return overrides if target is None else [*(overrides or []), target_override(target)]


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON in any case.")] = False,
) -> None:
    """Print the spec's JSON Schema, for editors."""
    from jobs.spec import JobSpec

    typer.echo(json.dumps(JobSpec.model_json_schema(by_alias=True), indent=2))


for _command in (job_commands.submit, job_commands.describe, job_commands.status, job_commands.logs):
    app.command()(_command)
app.command("list")(job_commands.list_jobs)
app.command()(job_commands.cancel)
app.command()(service_commands.serve)


@data_app.command("get")
def data_get(
    name: Annotated[
        str, typer.Argument(help="fashion-mnist, shakespeare, movielens-100k, japanese-vowels", metavar="NAME")
    ],
    folder: Annotated[Path | None, typer.Option(help="Where to put it; default: data/NAME.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a known data set and check its checksums; one that is there already is only checked.

    Says what it is, whose, and under which terms; the folder is the last line.
    """
    from jobs.data import fetch

    place, release = fetch.get(name, folder), fetch.find(name)
    document = {"name": name, "path": str(place), "source": release.source, "licence": release.licence}
    show(document, [f"source   {release.source}", f"licence  {release.licence}", str(place)], as_json)


@data_app.command("info")
def data_info(spec: Spec, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show what a spec's data set holds: shape, classes, splits, fingerprint."""
    from jobs import data
    from jobs.spec import JobSpec

    parsed = JobSpec.load(spec, overrides)
    info = data.inspect(parsed.data, parsed.train.loss)
    document = info.to_json() | {"fingerprint": data.fingerprint(parsed.data, parsed.train.loss)}
    classes = f"{len(info.classes)} classes: {', '.join(info.classes[:12])}{' …' * (len(info.classes) > 12)}"
    codes = f", codes up to {', '.join(str(count - 1) for count in info.num_codes)}" if info.num_codes else ""
    target = f"the next of {info.outputs} tokens, at each step" if info.per_step else "1 value"
    lines = [
        f"task         {info.task}",
        f"sample       {' × '.join(map(str, info.input_shape))} ({info.kind}){codes}",
        f"target       {classes if info.classes else target}",
        f"splits       {', '.join(f'{k} {v}' for k, v in info.num_samples.items())}",
        f"fingerprint  {document['fingerprint']}",
    ]
    show(document, lines, as_json)


def _fail(error: ThresherError, as_json: bool, seen: dict[str, Any]) -> None:
    _say(f"error: {error}")
    if as_json:
        problems = [str(problem) for problem in error.problems] if isinstance(error, SpecError) else [str(error)]
        show({**seen, "error": type(error).__name__, "problems": problems}, [], as_json)


def main() -> None:
    """The entry point `thresher`."""
    as_json = "--json" in sys.argv[1:]  # asked of the arguments themselves: they may be what is wrong
    try:
        code = app(standalone_mode=False)
    except ThresherError as error:
        _fail(error, as_json, {})
        code = error.exit_code
    except _ARGUMENTS_ARE_WRONG as error:
        error.show()
        if as_json:
            show({"error": "UsageError", "problems": [error.format_message()]}, [], as_json)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
