"""The search: Ray Tune runs the trials, warm gangs do the work. The only file that imports ray.tune.

Optuna is asked and told by ourselves (`orchestrator.study`): Ray's own adapter (2.60) books a trial that ASHA stopped
as complete, leaves a NaN trial running, and knows no constraints.
"""

import json
import logging
import math
import os
import queue
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.gang import Gang
from cluster.placement import bundles
from jobs.context import WorkRef
from jobs.errors import Interrupted, JobFailed
from jobs.layout import ParallelLayout
from jobs.records import Trial
from jobs.spec import JobSpec
from jobs.spec.search import Phase, Search
from orchestrator.runs import Storage
from orchestrator.stages import Stages
from orchestrator.study import Study
from orchestrator.trials import TrialTask, failed_trial, run_trial

logger = logging.getLogger(__name__)

STEP_TIMEOUT_S = 3600.0
STOP_TIMEOUT_S = 60.0
_LOST = "the process that ran the trial was lost"


@dataclass(frozen=True)
class SearchTask:
    """One phase of a search.

    Attributes:
        base: what the trials differ from.
        folder: where the study and the finished trials are kept; a search that was broken off goes on from there.
        slots: how many trials fit the free resources at a time.
    """

    base: JobSpec
    phase: Phase
    storage: Path
    dataset: Path
    code: str
    layout: ParallelLayout
    folder: Path
    slots: int
    on_trial: Callable[[Trial], None]
    on_event: Callable[[dict[str, Any]], None]
    should_stop: Callable[[], bool] = field(default=lambda: False)

    @property
    def search(self) -> Search:
        assert self.base.search is not None
        return self.base.search


class TrialActor(tune.Trainable):
    """A seat for trials: keeps its gang of workers warm from one to the next.

    The trial runs in a thread and hands over its epochs; each `step` of Tune takes one, so that the scheduler can stop
    the trial between two of them.
    """

    def setup(self, config: dict[str, Any]) -> None:
        shared = config["shared"]
        self.base = JobSpec.parse(shared["spec"])
        self.phase: Phase = shared["phase"]
        self.gang: Gang | None = None
        self.gang_s = 0.0
        self.stages = Stages(
            storage=Storage.at(shared["storage"]),
            code=shared["code"],
            dataset=Path(shared["dataset"]),
            group=self._workers,
            layouts=[ParallelLayout(**shared["layout"])],
            micro_batch=shared["micro_batch"],
            retry=self.base.retry,
            on_report=lambda report: None,
            on_stage=lambda name, manifest, reused: None,
            should_stop=lambda: self.stopping.is_set(),
            timing="trial",
        )
        self._begin(config)

    def _workers(self) -> Gang:
        if self.gang is None:
            started = time.monotonic()
            resources = self.base.resources
            self.gang = Gang(
                self.base.num_workers,
                resources.cpus_per_worker,
                resources.gpus_per_worker,
                warm_up=WorkRef("jobs.train.mesh:warm_up"),
                placement_group=ray.util.get_current_placement_group(),
                stall_timeout_s=self.base.retry.stall_timeout_s,
            )
            self.gang_s = time.monotonic() - started
        return self.gang

    def _begin(self, config: dict[str, Any]) -> None:
        self.epochs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopping = threading.Event()
        task = TrialTask(number=config["number"], phase=self.phase, params=config["params"])
        self.thread = threading.Thread(target=self._run, args=(task, self.epochs), daemon=True)
        self.thread.start()

    def _run(self, task: TrialTask, epochs: "queue.Queue[dict[str, Any]]") -> None:
        started = time.monotonic()
        try:
            self._workers()  # before the trial's clock starts
            trial = run_trial(task, self.base, self.stages, epochs.put)
        except Exception as error:
            logger.exception("trial %d failed", task.number)
            cause = f"{type(error).__name__}: {error}"
            trial = failed_trial(task, cause, seconds=time.monotonic() - started)
        epochs.put({"trial": trial.to_json()})

    def step(self) -> dict[str, Any]:
        try:
            item = self.epochs.get(timeout=STEP_TIMEOUT_S)
        except queue.Empty:
            raise JobFailed(f"the trial has shown no epoch for {STEP_TIMEOUT_S:.0f} s") from None
        if "trial" in item:
            metric = item["trial"]["values"].get("metric")
            # Tune flattens what is nested, hence the text. It always wants the metric; ASHA passes over NaN.
            metric = math.nan if metric is None else metric
            return {"done": True, "record": json.dumps(item["trial"]), "metric": metric, "gang_s": self.gang_s}
        return {"metric": item["metric"], "report": json.dumps(item)}

    def _end(self) -> None:
        self.stopping.set()
        self.thread.join(STOP_TIMEOUT_S)
        if self.thread.is_alive():
            raise JobFailed(f"the trial did not stop within {STOP_TIMEOUT_S:.0f} s")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end()
        if self.gang is not None:
            self.gang.stop()


class _Asker(Searcher):
    """Tune's view of the study: suggests, and books what became of the trials."""

    def __init__(self, task: SearchTask, study: Study) -> None:
        super().__init__(metric="metric", mode=task.base.metric_direction)
        self.task, self.study = task, study
        self.live: dict[str, TrialTask] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.since: dict[str, float] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.task.should_stop():
            return Searcher.FINISHED
        while (asked := self.study.ask()) is not None and asked.repeated is not None:
            self.task.on_trial(asked.repeated)
        if asked is None:
            return Searcher.FINISHED
        number, params = asked.number, asked.params
        self.live[trial_id] = TrialTask(number, self.task.phase, params)
        self.curves[trial_id], self.since[trial_id] = [], time.monotonic()
        self.task.on_event({"event": "trial_started", "phase": self.task.phase, "trial": number, "params": params})
        return {"number": number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "report" not in result:
            return
        report = json.loads(result["report"])
        number = self.live[trial_id].number
        self.curves[trial_id].append(report)
        self.study.intermediate(number, len(self.curves[trial_id]), report["metric"])
        self.task.on_event({"event": "trial_epoch", "phase": self.task.phase, "trial": number, **_row(report)})

    def ended(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to end with this result, as the whole search does."""
        return self.task.should_stop() and "record" not in result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and "record" not in result:
            self.on_trial_result(trial_id, result)  # Tune shows the result that led to a stop here alone
        task = self.live.pop(trial_id)
        record = (result or {}).get("record")
        if record is None and self.task.should_stop():
            return  # the search ends early: the trial stays unfinished, and the next attempt runs it again
        if record is not None:
            trial = Trial.from_json(json.loads(record))
        else:
            curve = self.curves[trial_id]
            last = curve[-1] if curve else {"step": 0}
            trial = Trial(
                number=task.number,
                phase=task.phase,
                params=task.params,
                state="failed" if error else "pruned",
                cause=_LOST if error else f"stopped by the scheduler after {len(curve)} epochs",
                values={},
                curve=tuple(report["metric"] for report in curve),
                seconds=time.monotonic() - self.since[trial_id],
                steps=last["step"],
                epochs=len(curve),
            )
        self.task.on_trial(self.study.tell(trial))

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its whole configuration into its folder. What it writes is never read: see Study.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for a checkpoint of the searcher; the study is in its own file already."""
        Path(checkpoint_path).write_text(json.dumps({"study": str(self.task.folder)}))

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search goes on from its study's file")


def _row(report: dict[str, Any]) -> dict[str, Any]:
    return {key: report.get(key) for key in ("epoch", "step", "split", "loss", "metric", "lr")}


def run_search(task: SearchTask) -> list[Trial]:
    """Runs one phase to its end; trials that an earlier attempt finished are kept.

    Raises:
        JobFailed: every trial failed; the causes are counted.
        Interrupted: `should_stop` asked for an early end.
    """
    study = Study(task.base, task.phase, task.folder)
    if len(study.finished) < study.total:
        _tune(task, study)
    finished = study.finished
    if task.should_stop():
        raise Interrupted("the search was stopped; finished trials are kept")
    if not any(trial.state == "completed" for trial in finished):
        causes: dict[str, int] = {}
        for trial in finished:
            causes[trial.cause] = causes.get(trial.cause, 0) + 1
        counted = "; ".join(f"{count} × {cause}" for cause, count in sorted(causes.items(), key=lambda i: -i[1]))
        shutil.rmtree(task.folder)  # nothing worth keeping: the next attempt begins anew
        raise JobFailed(f"none of the {len(finished)} trials completed: {counted}")
    return finished


def _tune(task: SearchTask, study: Study) -> None:
    base, search = task.base, task.search
    left = study.total - len(study.finished)
    resources = base.resources
    workers = bundles(base.num_workers, resources.cpus_per_worker, resources.gpus_per_worker)
    concurrency = max(1, min(search.concurrency or task.slots, task.slots, left))
    asker = _Asker(task, study)
    shared = {
        "spec": base.document(),
        "phase": task.phase,
        "storage": str(task.storage),
        "dataset": str(task.dataset),
        "code": task.code,
        "layout": asdict(task.layout),
        "micro_batch": None if base.layout == "auto" else base.layout.micro_batch,
    }
    scratch = task.folder / "tune"
    tuner = tune.Tuner(
        tune.with_resources(
            TrialActor,
            # The actor itself only waits, and needs nothing: all bundles are its gang's.
            PlacementGroupFactory([{}, *workers]),
        ),
        param_space={"shared": shared},
        tune_config=tune.TuneConfig(
            search_alg=asker,
            scheduler=_scheduler(base, task.phase),
            num_samples=left,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{task.phase}-{time.time_ns()}",
            storage_path=str(scratch),
            verbose=0,
            stop=asker.ended,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        with _quiet_tune():
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keeps Tune's own tables off the terminal, and leaves an interruption to whoever drives the job."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "600",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    tune_log = logging.getLogger("ray.tune")
    level = tune_log.level
    if not os.environ.get("THRESHER_DEBUG"):
        tune_log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # ASHA's percentiles over a rung that holds failed trials alone.
            warnings.filterwarnings("ignore", message="All-NaN slice encountered", category=RuntimeWarning)
            yield
    finally:
        tune_log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _scheduler(spec: JobSpec, phase: Phase) -> TrialScheduler:
    search = spec.search
    assert search is not None
    epochs = spec.train.epochs
    if phase == "compress" or search.scheduler == "none" or epochs is None or epochs <= search.grace_epochs:
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        time_attr="training_iteration",
        metric="metric",
        mode=spec.metric_direction,
        max_t=epochs + 1,  # the last result is the trial's end, not an epoch
        grace_period=search.grace_epochs,
        reduction_factor=3,
    )
