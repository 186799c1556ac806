"""One job from its spec to its report: every stage, top to bottom.

prepare → search | train → (search of the compression keys) → prune → export → quantize → measure → select → test → report
"""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.connect import Connection, connect
from cluster.gang import Gang
from jobs import data
from jobs.context import WorkRef
from jobs.data import Dataset
from jobs.errors import BudgetUnmet, ClusterUnreachable, Interrupted, SpecError, ThresherError
from jobs.export.card import file_records
from jobs.records import Artifact, Interval, JobPlan, Measurement, RunReport, StageManifest, Trial
from jobs.spec import JobSpec
from jobs.spec.search import Phase
from jobs.storage import atomic_path, read_json, write_json
from orchestrator import artifacts
from orchestrator.environment import environment
from orchestrator.goodput import goodput
from orchestrator.plan import plan_job
from orchestrator.report import write_report
from orchestrator.runs import Run, Storage
from orchestrator.selection import Selection, best_compression, best_trials, select, trial_front
from orchestrator.stages import SCHEMA_VERSIONS, Model, Stages, search_config
from orchestrator.verdict import judge_test

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Winner:
    """What a search found, as a spec of its own: the job's, with the trial's values in it."""

    spec: JobSpec
    suffix: str
    """Of the names of its models: "" for the first."""


@dataclass
class Job:
    """A job under way."""

    run: Run
    spec: JobSpec
    plan: JobPlan
    storage: Storage
    dataset: Path
    stages: Stages
    workers: "_Workers"
    slots: int
    """Trials that fit the free resources at a time."""
    trials: list[Trial]


def run(
    spec: JobSpec,
    *,
    runs: str | Path = "runs",
    address: str | None = None,
    listeners: tuple[Listener, ...] = (),
) -> RunReport:
    """Runs a job to its end, here or on the Ray cluster at `address`. Returns the report; it is on disk as well.

    Raises:
        SpecError: the spec or its data are wrong; no run is left behind.
        JobFailed: the work did not succeed; `resume` goes on from what is complete.
        ClusterUnreachable: no cluster answers at `address`.
        Interrupted: by the user or a signal.
    """
    storage = Storage.at(runs)
    plan_job(spec, storage)
    created = storage.create_run(spec)
    try:
        return resume_run(created, storage, address=address, listeners=listeners)
    except (SpecError, ClusterUnreachable):
        if not (created.folder / "stages").exists():
            shutil.rmtree(created.folder)  # nothing is complete: there is nothing to resume
        raise


def resume(
    name: str | Path, *, runs: str | Path = "runs", address: str | None = None, listeners: tuple[Listener, ...] = ()
) -> RunReport:
    """Goes on with a run that was broken off, by its directory or its id. Complete stages are not run again."""
    storage = Storage.at(runs)
    found = storage.find_run(str(name))
    return resume_run(found, Storage(found.folder.parent), address=address, listeners=listeners)


def resume_run(run: Run, storage: Storage, *, address: str | None, listeners: tuple[Listener, ...]) -> RunReport:
    """Drives a run whose directory is there, from wherever it stands."""
    run.listeners += listeners
    with run.driving(), _stop_on_sigterm():
        run.event("started", run_id=run.id, run_dir=str(run.folder), name=run.spec.name)
        try:
            report = _drive(run, storage, address)
        except (KeyboardInterrupt, Interrupted) as error:
            run.event("interrupted")
            raise Interrupted(f"stopped; go on with: thresher resume {run.folder}") from error
        except ThresherError as error:
            run.event("failed", error=type(error).__name__, message=str(error))
            raise
        run.event("finished", state=report.state, selected=report.selected)
        return report


def _drive(run: Run, storage: Storage, address: str | None) -> RunReport:
    spec = run.spec
    plan = plan_job(spec, storage)
    dataset = _prepare(run, spec, plan, storage)
    write_json(run.folder / "plan.json", plan.to_json())
    started = time.monotonic()
    own_modules = Path(spec.code.working_dir).absolute() if spec.uses_own_code else None
    with (
        connect(address, working_dir=own_modules, requirements=spec.code.requirements) as connection,
        _stop_on_sigterm(),  # Ray has put its own handler in place of ours
        ExitStack() as stack,
    ):
        run.event("connected", seconds=time.monotonic() - started)
        workers = _Workers(run, spec, stack)
        job = Job(
            run=run,
            spec=spec,
            plan=plan,
            storage=storage,
            dataset=dataset,
            workers=workers,
            stages=Stages(
                storage=storage,
                code=plan.hashes["code"],
                dataset=dataset,
                group=workers.get,
                zero_stage=plan.layout["zero_stage"],
                micro_batch=plan.batch["micro"],
                max_failures=spec.retry.max_failures,
                on_report=lambda report: _log(run, report),
                on_stage=lambda name, manifest, reused: _stage_done(run, name, manifest, reused),
                should_stop=lambda: False,
            ),
            slots=_slots(connection, spec),
            trials=[],
        )
        models = [model for winner in _winners(job) for model in _make(job, winner)]
        return _conclude(job, models)


def _slots(connection: Connection, spec: JobSpec) -> int:
    """How many gangs of the job's size the free resources hold. On several nodes fewer may fit; Tune then waits."""
    free, resources = connection.free(), spec.resources
    fits = [free.get("CPU", 0.0) // (spec.num_workers * resources.cpus_per_worker)]
    if resources.gpus_per_worker:
        fits.append(free.get("GPU", 0.0) // (spec.num_workers * resources.gpus_per_worker))
    return max(1, int(min(fits)))


def _prepare(run: Run, spec: JobSpec, plan: JobPlan, storage: Storage) -> Path:
    folder = storage.datasets / plan.hashes["dataset"]
    reused = (folder / "dataset.json").exists()
    started = time.monotonic()
    run.event("stage_started", stage="prepare")
    data.prepare(spec.data, spec.train.loss, folder)
    run.event("prepared", dataset=folder.name, reused=reused, seconds=time.monotonic() - started)
    return folder


def _winners(job: Job) -> Iterator[Winner]:
    """The training configurations to go on with, best first."""
    search = job.spec.search
    if search is None or search.phases()[0] == "compress":
        yield Winner(job.spec, "")
        return
    phase = search.phases()[0]
    trials = _search(job, job.spec, phase)
    if phase == "joint":
        chosen = best_compression(trials, pick=job.spec.compress.pick, metric_direction=job.spec.metric_direction)
        best: tuple[Trial, ...] = (chosen,) if chosen else ()
    else:
        best = best_trials(trials, direction=job.spec.metric_direction, count=search.winners)
    for index, trial in enumerate(best):
        yield Winner(job.spec.replace(trial.params), f"-{index + 1}" if index else "")


def _make(job: Job, winner: Winner) -> list[Model]:
    """A winner trained (its trial has done that already), compressed and exported."""
    spec, suffix = winner.spec, winner.suffix
    dense = job.stages.train(spec, f"train{suffix}")
    if spec.search and "compress" in spec.search.phases():
        trials = _search(job, spec, "compress", suffix)
        chosen = best_compression(trials, pick=spec.compress.pick, metric_direction=spec.metric_direction)
        if chosen:
            spec = spec.replace(chosen.params)
    return job.stages.family(spec, dense, suffix)


def _search(job: Job, base: JobSpec, phase: Phase, suffix: str = "") -> list[Trial]:
    """A phase of the search, as a stage: its finished trials are its result."""
    from orchestrator.search import SearchTask, keep, run_search

    name = f"search/{phase}{suffix}" if phase == "compress" else "search"
    started = time.monotonic()

    def search(folder: Path) -> dict[str, Any]:
        job.workers.release()
        job.run.event("search_started", phase=phase, stage=name, trials=base.search.num_trials(phase))

        def on_trial(trial: Trial) -> None:
            keep(folder, trial)
            job.run.event("trial", stage=name, **trial.to_json())

        task = SearchTask(
            base=base,
            phase=phase,
            storage=job.storage.root,
            dataset=job.dataset,
            code=job.plan.hashes["code"],
            zero_stage=job.plan.layout["zero_stage"],
            folder=folder,
            slots=job.slots,
            on_trial=on_trial,
            on_event=lambda event: _log(job.run, event),
        )
        trials = run_search(task)
        job.run.event("search_finished", phase=phase, stage=name, seconds=time.monotonic() - started)
        return {"trials": [trial.to_json() for trial in trials]}

    manifest, reused = job.storage.perform(
        "search",
        inputs={"dataset": job.dataset.name},
        config=search_config(base, phase),
        code=job.plan.hashes["code"],
        schema_version=SCHEMA_VERSIONS["search"],
        do=search,
    )
    assert manifest is not None
    _stage_done(job.run, name, manifest, reused)
    trials = [Trial.from_json(document) for document in manifest.result["trials"]]
    job.trials += trials
    write_trials(job.run.folder / "trials.parquet", job.trials)
    return trials


def write_trials(path: Path, trials: list[Trial]) -> None:
    """A row a trial: parameters and objectives as columns of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = sorted({key for trial in trials for key in trial.params})
    rows = [
        {
            **trial.model_dump(exclude={"params", "values", "curve"}),
            **{key: trial.params.get(key) for key in keys},
            **{f"value.{name}": trial.values.get(name) for name in ("metric", "latency_ms", "bytes")},
        }
        for trial in trials
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def _conclude(job: Job, models: list[Model]) -> RunReport:
    """Measures all candidates on validation, selects one, tests that one and the dense one, and reports."""
    spec, stages, run = job.spec, job.stages, job.run
    measured = stages.measure(spec, models, "dense")
    made = []
    for model in models:
        folder = run.folder / "artifacts" / model.name
        names = artifacts.write_files(folder, model, stages, spec)
        made.append(
            Artifact(
                name=model.name,
                parent=model.parent,
                stage=model.stage,  # type: ignore[arg-type]
                recipe=model.recipe,
                files=file_records(folder, names),
                measurement=Measurement.from_json(measured.result[model.name]),
            )
        )
    selection = select(
        made,
        dense="dense",
        budget=spec.compress.budget,
        pick=spec.compress.pick,
        metric_direction=spec.metric_direction,
    )
    selection = _tested(job, models, selection)
    dataset = Dataset.open(job.dataset)
    for artifact in selection.artifacts:
        artifacts.finish(run.folder / "artifacts" / artifact.name, artifact, spec, dataset, run.id)
    report = _report(job, models, selection)
    write_report(report, run.folder)
    dense = next(a for a in selection.artifacts if a.name == "dense")
    if spec.compress.budget.required and not dense.fits_budget and selection.selected == "dense":
        raise BudgetUnmet(f"no artifact fits the budget, which is required; the report: {run.folder / 'report.html'}")
    return report


def _tested(job: Job, models: list[Model], selection: Selection) -> Selection:
    """The test split changes no choice: it is measured afterwards, for the dense and the selected artifact alone."""
    names = {"dense", selection.selected}
    tested = job.stages.test(job.spec, [model for model in models if model.name in names])
    results = {name: Interval.from_json(value) for name, value in tested.result.items()}
    with_test = tuple(a.model_copy(update={"test_metric": results.get(a.name)}) for a in selection.artifacts)
    judged = judge_test(with_test, selected=selection.selected, dense="dense", budget=job.spec.compress.budget)
    return replace(selection, artifacts=judged)


def _report(job: Job, models: list[Model], selection: Selection) -> RunReport:
    run, spec = job.run, job.spec
    events = run.events()
    stages = [
        {"name": e["stage"], "hash": e["stage_hash"], "reused": e["reused"], "seconds": e["seconds"]}
        for e in events
        if e["event"] == "stage"
    ]
    prepared = [e for e in events if e["event"] == "prepared"][-1]
    stages.insert(0, {"name": "prepare", "hash": prepared["dataset"], **_pick(prepared, "reused", "seconds")})
    newest = {stage["name"]: stage for stage in stages}
    return RunReport(
        run_id=run.id,
        name=spec.name,
        state="succeeded",
        layout=job.plan.layout,
        model=job.plan.model.to_json(),
        dataset=job.plan.dataset.to_json() | {"fingerprint": job.dataset.name},
        spec=spec.resolved(),
        stages=tuple(newest.values()),
        curves=_curves(job, models),
        search=_search_summary(job),
        artifacts=selection.artifacts,
        selected=selection.selected,
        budget=spec.compress.budget.model_dump(mode="json"),
        warnings=(*job.plan.warnings, *_refusals(events), *selection.warnings),
        goodput=goodput(events, job.slots),
        environment=environment(),
    )


def _refusals(events: list[dict[str, Any]]) -> list[str]:
    """Schemes that did not suit a model, each once."""
    refused = {event["artifact"]: event["reason"] for event in events if event["event"] == "refused"}
    return [f"{artifact} was not made: {reason}" for artifact, reason in refused.items()]


def _pick(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


def _curves(job: Job, models: list[Model]) -> dict[str, list[dict[str, Any]]]:
    """The learning curves behind the models, from the stages that trained them."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        if model.stage != "quantize":
            name = "train" if model.stage == "dense" else "recover"
            suffix = model.name.removeprefix("dense").removeprefix("pruned")
            curves[name + suffix] = read_json(job.stages.folder(model.stored) / "history.json")["epochs"]
    return curves


def _search_summary(job: Job) -> dict[str, Any] | None:
    search = job.spec.search
    if search is None:
        return None
    states = [trial.state for trial in job.trials]
    objectives = {"metric": job.spec.metric_direction, **search.objectives.model_dump(exclude_none=True)}
    best = best_trials(job.trials, direction=job.spec.metric_direction, count=1)
    return {
        "trials": [trial.to_json() for trial in job.trials],
        "completed": states.count("completed"),
        "pruned": states.count("pruned"),
        "errored": states.count("failed"),
        "best": best[0].number if best else None,
        "pareto": list(trial_front(job.trials, objectives)),
        "space": {
            key: dim.model_dump(mode="json", by_alias=True, exclude_none=True) for key, dim in search.space.items()
        },
        "objectives": objectives,
        "mode": search.mode,
        "algorithm": search.algorithm,
        "scheduler": search.scheduler,
    }


def _stage_done(run: Run, name: str, manifest: StageManifest, reused: bool) -> None:
    run.refer(name, manifest, reused=reused)
    fields = {"checkpoint_s": manifest.result.get("checkpoint_s")} if isinstance(manifest.result, dict) else {}
    run.event("stage", stage=name, stage_hash=manifest.hash, reused=reused, seconds=manifest.seconds, **fields)


def _log(run: Run, report: dict[str, Any]) -> None:
    """Work's reports: numbers go to metrics.jsonl, all of them to the listeners and the event log."""
    event = report["event"]
    if event in ("step", "epoch", "trial_epoch"):
        fields = {key: report.get(key) for key in ("epoch", "step", "split", "loss", "metric", "lr")}
        run.metric(stage=report.get("label", report.get("phase")), trial=report.get("trial"), **fields)
    run.event(**report)


class _Workers:
    """The gang that runs the stages: started when the first stage really has to run, kept warm for the others.

    During a search its seats are needed by the trials, so it ends before one.
    """

    def __init__(self, run: Run, spec: JobSpec, stack: ExitStack) -> None:
        self.run, self.spec, self.stack = run, spec, stack
        self.gang: Gang | None = None

    def get(self) -> Gang:
        if self.gang is None:
            started = time.monotonic()
            resources = self.spec.resources
            self.gang = self.stack.enter_context(
                Gang(
                    self.spec.num_workers,
                    resources.cpus_per_worker,
                    resources.gpus_per_worker,
                    warm_up=WorkRef("jobs.train.mesh:warm_up"),
                )
            )
            self.run.event("workers_started", workers=self.gang.size, seconds=time.monotonic() - started)
        return self.gang

    def release(self) -> None:
        if self.gang is not None:
            self.gang.stop()
            self.gang = None


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM is taken as an interruption by the user: workers are stopped, and the run can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
