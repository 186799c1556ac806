"""One job from its spec to its report: every stage, top to bottom.

prepare → search | train → (search of compression keys) → prune → low_rank → export → quantize → pack → measure
→ select → test → report
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import data
from jobs.data import Dataset
from jobs.errors import BudgetUnmet, Interrupted
from jobs.export.card import file_records
from jobs.records import Artifact, Interval, JobPlan, Measurement, RunReport, Segment, StageManifest, Trial
from jobs.spec import JobSpec
from jobs.spec.search import Phase
from orchestrator import artifacts
from orchestrator.assembly import build_report, training_curves, write_trials
from orchestrator.family import family
from orchestrator.model_card import write_model_cards
from orchestrator.planning.layouts import planned_layouts
from orchestrator.planning.plan import most_evaluations
from orchestrator.report import write_report
from orchestrator.runs import Run, Storage
from orchestrator.searching.result import best_of
from orchestrator.searching.watching import Watcher
from orchestrator.selection import Selection, best_compression, best_trials, select
from orchestrator.stage_configs import SCHEMA_VERSIONS, search_config
from orchestrator.stages import Model, Stages
from orchestrator.verdict import judge_test


@dataclass(frozen=True)
class Winner:
    """What a search found, as a spec of its own: the job's, with the trial's values in it."""

    spec: JobSpec
    suffix: str
    """Of the names of its models: "" for the first."""
    trial: Trial | None = None
    """Where its values come from; None where training keys were not searched."""

    @property
    def lineage(self) -> tuple[Segment, ...]:
        """Of its model, where it was trained in several parts (pbt); else its stage follows from the spec."""
        return self.trial.lineage if self.trial is not None else ()


@dataclass(frozen=True)
class Found:
    """What the searches of a job found.

    Attributes:
        best: None where no trial completed.
        base: what the trials of the best one's phase differ from.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    base: JobSpec


@dataclass
class Job:
    """A job under way."""

    run: Run
    spec: JobSpec
    plan: JobPlan
    storage: Storage
    dataset: Path
    stages: Stages
    release_workers: Callable[[], None]
    """Gives the workers' seats to the trials of a search."""
    slots: int
    """Trials that fit the free resources at a time."""
    trials: list[Trial]
    watcher: Watcher


def prepare(run: Run, spec: JobSpec, plan: JobPlan, storage: Storage) -> Path:
    """The prepared data set, from the cache or made now. It needs no workers, and is looked at before any start."""
    folder = storage.datasets / plan.hashes["dataset"]
    reused = (folder / "dataset.json").exists()
    started = time.monotonic()
    run.event("stage_started", stage="prepare")
    data.prepare(spec.data, spec.train.loss, folder)
    run.event("prepared", dataset=folder.name, reused=reused, seconds=time.monotonic() - started)
    return folder


def perform(job: Job) -> RunReport:
    """Everything after the data are prepared."""
    for message in calibration_warnings(job.spec, Dataset.open(job.dataset)):
        job.run.event("warning", stage="quantize", message=message)
    models = [model for winner in _winners(job) for model in _make(job, winner)]
    return _conclude(job, models)


def calibration_warnings(spec: JobSpec, dataset: Dataset) -> list[str]:
    """What is wrong with the samples that 8 bits will be spread over."""
    if spec.compress.quantize is None or not dataset.info.classes:
        return []
    labels = set(dataset.targets("train", dataset.calibration_ids).tolist())
    classes = dataset.info.classes
    if len(classes) < 2 or len(labels) > 1:
        return []
    only = classes[int(labels.pop())] if len(labels) == 1 else "none"
    return [
        f"all calibration samples are of one class ({only}): ranges of activations that only other classes reach "
        "will be cut off"
    ]


def explore(job: Job) -> tuple[Found, RunReport]:
    """The searches alone. Nothing is made of what they find but what a trial looks at."""
    assert job.spec.search is not None
    found: list[tuple[JobSpec, Trial]] = []
    for winner in _winners(job):
        if winner.trial is not None:
            found.append((job.spec, winner.trial))
        if "compress" in job.spec.search.phases() and not job.watcher.ended:
            _trained(job, winner)
            chosen = best_of(_search(job, winner.spec, "compress", winner.suffix, winner.lineage), winner.spec)
            if chosen:
                found.append((winner.spec, chosen))
    last = [(base, trial) for base, trial in found if trial.phase != "train"]
    # Of several winners the one whose compressed trial is best; without compression the first is.
    best = best_of([trial for _, trial in last], job.spec) if last else (found[0][1] if found else None)
    base = next((base for base, trial in found if trial is best), job.spec)
    warnings = (f"the search ended early: {job.watcher.ended}",) if job.watcher.ended else ()
    report = build_report(
        job.run,
        job.spec,
        job.plan,
        Selection(selected="", artifacts=(), warnings=warnings),
        trials=job.trials,
        curves={},
        slots=job.slots,
    )
    write_report(report, job.run.folder)
    return Found(tuple(job.trials), best, base), report


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
        yield Winner(job.spec.replace(trial.params), f"-{index + 1}" if index else "", trial)


def _make(job: Job, winner: Winner) -> list[Model]:
    """A winner trained (its trial has done that already), compressed and exported."""
    spec, suffix = winner.spec, winner.suffix
    dense = _trained(job, winner)
    if spec.search and "compress" in spec.search.phases():
        trials = _search(job, spec, "compress", suffix, winner.lineage)
        chosen = best_compression(trials, pick=spec.compress.pick, metric_direction=spec.metric_direction)
        if chosen:
            spec = spec.replace(chosen.params)
    return family(job.stages, spec, dense, suffix)


def _trained(job: Job, winner: Winner) -> StageManifest:
    name = f"train{winner.suffix}"
    if winner.lineage:
        return job.stages.lineage(winner.spec, winner.lineage, name)
    return job.stages.train(winner.spec, name)


def _search(job: Job, base: JobSpec, phase: Phase, suffix: str = "", lineage: tuple[Segment, ...] = ()) -> list[Trial]:
    """A phase of the search, as a stage: its finished trials are its result."""
    from orchestrator.searching.search import run_search
    from orchestrator.searching.study.book import read_records
    from orchestrator.searching.task import SearchTask

    assert base.search is not None
    num_trials, concurrency = base.search.num_trials(phase), base.search.concurrency or job.slots
    smallest = planned_layouts(job.plan)[-1]
    name = f"search/{phase}{suffix}" if phase == "compress" else "search"
    started = time.monotonic()
    unfinished: list[list[Trial]] = []

    def search(folder: Path) -> dict[str, Any] | None:
        job.release_workers()
        known = list(read_records(folder).values())
        job.watcher.begin(base, known)
        job.run.event(
            "search_started",
            phase=phase,
            stage=name,
            trials=num_trials,
            done=[trial.to_json() for trial in known],
            slots=min(concurrency, job.slots),
            direction=base.metric_direction,
        )

        def on_trial(trial: Trial) -> None:
            job.run.event("trial", stage=name, **trial.to_json())

        task = SearchTask(
            # Trials of an elastic job are small, so that there are many at a time.
            base=base.with_workers(smallest.size),
            phase=phase,
            storage=job.storage.root,
            dataset=job.dataset,
            code=job.plan.hashes["code"],
            layout=smallest,
            evaluations=most_evaluations(base, job.plan.dataset.num_samples["train"]),
            trained=lineage,
            folder=folder,
            slots=job.slots,
            on_trial=on_trial,
            on_event=lambda event: job.run.log(event),
            should_stop=lambda: bool(job.watcher.ended),
            watched=job.watcher.on_epoch is not None,
        )
        try:
            trials = run_search(task)
        except Interrupted:
            if not job.watcher.ended:
                raise
            trials = sorted(read_records(folder).values(), key=lambda trial: trial.number)
            unfinished.append(trials)  # and no complete stage: the next attempt goes on from here
            job.run.event("search_ended", stage=name, reason=job.watcher.ended, finished=len(trials), trials=num_trials)
        job.run.event("search_finished", phase=phase, stage=name, seconds=time.monotonic() - started)
        return None if unfinished else {"trials": [trial.to_json() for trial in trials]}

    manifest, reused = job.storage.perform(
        "search",
        inputs={"dataset": job.dataset.name} | ({"trained": lineage[-1].stage} if lineage else {}),
        config=search_config(base, phase),
        code=job.plan.hashes["code"],
        schema_version=SCHEMA_VERSIONS["search"],
        do=search,
    )
    if manifest is None:
        (trials,) = unfinished
    else:
        job.run.stage_done(name, manifest, reused)
        trials = [Trial.from_json(document) for document in manifest.result["trials"]]
    job.trials += trials
    write_trials(job.run.folder / "trials.parquet", job.trials)
    return trials


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
                stage=model.stage,
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
    report = build_report(
        run,
        spec,
        job.plan,
        selection,
        trials=job.trials,
        curves=training_curves(models, stages),
        slots=job.slots,
    )
    write_model_cards(report, run.folder)
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
