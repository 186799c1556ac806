"""The search: Ray Tune runs the trials, warm gangs do the work. With `asker.py`, `halting.py`, `interruption.py` and
`scratch.py`, all that imports ray.tune.

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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler

from cluster.gang import Gang
from cluster.placement import bundles, check_fits
from jobs.context import WorkRef
from jobs.errors import Interrupted, JobFailed, SpecError, StorageError, WorkerLost
from jobs.layout import ParallelLayout
from jobs.records import Segment, Trial
from jobs.spec import JobSpec
from jobs.spec.search import Phase, Search
from orchestrator.asker import Asker, PopulationAsker
from orchestrator.halting import halting
from orchestrator.interruption import Interruption
from orchestrator.runs import Storage
from orchestrator.scratch import Staging, remove_scratch
from orchestrator.stages import Stages
from orchestrator.study import Study
from orchestrator.trials import Leg, TrialTask, count_causes, failed_trial, failure_cause, lost_to_memory, run_trial

logger = logging.getLogger(__name__)

STEP_TIMEOUT_S = 3600.0
STOP_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 60.0
"""How long the remains of a stopped trial are waited for, whose workers may still be about to stop."""
_BEGUN = "begun"
"""Folder below the search's: for each trial the stages that it began, so that what it left can be removed."""


@dataclass(frozen=True)
class SearchTask:
    """One phase of a search.

    Attributes:
        base: what the trials differ from.
        evaluations: the steps after which a training looks at validation, and can be stopped.
        trained: in the phase `compress`, the lineage of the winner's model, where it has one.
        folder: where the study and the finished trials are kept; a search that was broken off goes on from there.
        slots: how many trials fit the free resources at a time.
    """

    base: JobSpec
    phase: Phase
    storage: Path
    dataset: Path
    code: str
    layout: ParallelLayout
    evaluations: tuple[int, ...]
    trained: tuple[Segment, ...]
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
        self.begun = Path(shared["begun"])
        self.trained = tuple(Segment.from_json(part) for part in shared["trained"])
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
            on_report=self._note_stage,
            on_stage=lambda name, manifest, reused: None,
            should_stop=lambda: self.stopping.is_set(),
            timing="trial",
        )
        self._begin(config)

    def _workers(self) -> Gang:
        """The gang. One that loses a worker while it starts is started anew, as often as a work would be."""
        started, losses = time.monotonic(), 0
        while self.gang is None:
            try:
                self.gang = self._start_gang()
            except WorkerLost as error:
                losses += 1
                if losses > self.base.retry.max_failures or self.stopping.is_set():
                    raise
                logger.info("%s; the gang is started again", error)
            else:
                self.gang_s = time.monotonic() - started
        return self.gang

    def _start_gang(self) -> Gang:
        resources = self.base.resources
        return Gang(
            self.base.num_workers,
            resources.cpus_per_worker,
            resources.gpus_per_worker,
            warm_up=WorkRef("jobs.train.mesh:warm_up"),
            placement_group=ray.util.get_current_placement_group(),
            stall_timeout_s=self.base.retry.stall_timeout_s,
        )

    def _note_stage(self, report: dict[str, Any]) -> None:
        if report["event"] == "stage_started":
            self.begun.mkdir(exist_ok=True)
            with (self.begun / str(self.number)).open("a") as file:
                file.write(f"{report['stage_hash']}\n")

    def _begin(self, config: dict[str, Any]) -> None:
        with suppress(OSError):
            Path(self.logdir).rmdir()  # Tune makes one for each trial, and never removes it
        self.number: int = config["number"]
        self.shown = 0
        self.epochs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stopping = threading.Event()
        leg = None
        if (asked := config.get("leg")) is not None:
            before = tuple(Segment.from_json(part) for part in asked["before"])
            leg = Leg(before, asked["until_step"])
        task = TrialTask(number=config["number"], phase=self.phase, params=config["params"], leg=leg)
        self.thread = threading.Thread(target=self._run, args=(task, self.epochs), daemon=True)
        self.thread.start()

    def _run(self, task: TrialTask, epochs: "queue.Queue[dict[str, Any]]") -> None:
        started, killed = time.monotonic(), oom_kills()
        try:
            self._workers()  # before the trial's clock starts
            trial = run_trial(task, self.base, self.stages, epochs.put, self.trained)
        except Exception as error:
            logger.exception("trial %d failed", task.number)
            trial = failed_trial(task, failure_cause(error), seconds=time.monotonic() - started)
        epochs.put({"trial": lost_to_memory(trial, oom_kills() - killed).to_json()})

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
        self.shown += 1
        trained = item.get("total_steps") == item["step"]
        return {"metric": item["metric"], "report": json.dumps(item), "epochs": self.shown, "trained": trained}

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


def run_search(task: SearchTask) -> list[Trial]:
    """Runs one phase to its end; trials that an earlier attempt finished are kept.

    Raises:
        SpecError: the cluster can never hold a trial's workers.
        JobFailed: every trial failed; the causes are counted.
        Interrupted: `should_stop` asked for an early end.
    """
    study = Study(task.base, task.phase, task.folder)
    if len(study.finished) < study.total:
        try:
            _tune(task, study)
        except SpecError:
            if not study.finished:
                shutil.rmtree(task.folder)  # it could not even start
            raise
    finished = study.finished
    if task.should_stop():
        raise Interrupted("the search was stopped; finished trials are kept")
    _remove_remains(task, finished)
    if not any(trial.state == "completed" for trial in finished):
        shutil.rmtree(task.folder)  # nothing worth keeping: the next attempt begins anew
        raise JobFailed(f"none of the {len(finished)} trials completed: {count_causes(finished)}")
    return finished


def _remove_remains(task: SearchTask, finished: list[Trial]) -> None:
    """Removes the stages that trials have begun and not finished: nobody goes on from there.

    What another process works on is left to it.
    """
    storage, begun = Storage.at(task.storage), task.folder / _BEGUN
    for trial in finished:
        noted = begun / str(trial.number)
        if not noted.exists():
            continue
        for digest in dict.fromkeys(noted.read_text().split()):
            partial = storage.stage(digest).with_suffix(".partial")
            if not partial.exists():
                continue
            try:
                with storage.claim(digest, timeout_s=SETTLE_TIMEOUT_S):
                    shutil.rmtree(partial, ignore_errors=True)
            except StorageError:
                logger.warning("%s is still being worked on and stays", partial)
    shutil.rmtree(begun, ignore_errors=True)


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _tune(task: SearchTask, study: Study) -> None:
    base, search = task.base, task.search
    resources = base.resources
    workers = bundles(base.num_workers, resources.cpus_per_worker, resources.gpus_per_worker)
    check_fits(workers, [node["Resources"] for node in ray.nodes() if node["Alive"]])  # else Tune waits for ever
    asker: Asker
    if search.scheduler == "pbt" and task.phase == "train":
        asker = PopulationAsker(task, study, task.evaluations)
        left = asker.left
    else:
        asker = Asker(task, study)
        left = study.total - len(study.finished)
    scheduler = FIFOScheduler()
    if task.phase != "compress" and search.scheduler != "pbt":
        evaluations = len(task.evaluations)
        scheduler = halting(search, direction=base.metric_direction, evaluations=evaluations, past=study.finished)
    concurrency = max(1, min(search.concurrency or task.slots, task.slots, left))
    shared = {
        "spec": base.document(),
        "phase": task.phase,
        "storage": str(task.storage),
        "dataset": str(task.dataset),
        "code": task.code,
        "trained": [part.to_json() for part in task.trained],
        "begun": str(task.folder / _BEGUN),
        "layout": asdict(task.layout),
        "micro_batch": None if base.layout == "auto" else base.layout.micro_batch,
    }
    scratch, interruption = task.folder / "tune", Interruption(asker.ended)
    tuner = tune.Tuner(
        tune.with_resources(
            TrialActor,
            # The actor itself only waits, and needs nothing: all bundles are its gang's.
            PlacementGroupFactory([{}, *workers]),
        ),
        param_space={"shared": shared},
        tune_config=tune.TuneConfig(
            search_alg=asker,
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{task.phase}-{time.time_ns()}",
            storage_path=str(scratch),
            verbose=0,
            stop=interruption,
            # Of the trial's actor. It retries its workers' losses itself.
            failure_config=tune.FailureConfig(max_failures=base.retry.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[Staging(scratch)],
        ),
    )
    try:
        with _quiet_tune(), interruption.listening():
            if left:
                tuner.fit()
        if isinstance(asker, PopulationAsker):
            asker.conclude()
    finally:
        remove_scratch(scratch)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keeps Tune's tables off the terminal and its logs off the disk, and leaves an interruption to whoever drives."""
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
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
