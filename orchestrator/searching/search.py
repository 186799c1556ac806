"""The search: Ray Tune runs the trials, warm gangs do the work. With `asker.py`, `halting.py`, `interruption.py`,
`scratch.py` and `seat.py`, all that imports ray.tune.

Optuna is asked and told by ourselves (`orchestrator.searching.study`): Ray's own adapter (2.60) books a trial that ASHA
stopped as complete, leaves a NaN trial running, and knows no constraints.
"""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from cluster.placement import bundles, check_fits
from jobs.errors import Interrupted, JobFailed, SpecError, StorageError
from jobs.records import Trial
from jobs.storage import write_json
from orchestrator.runs import Storage
from orchestrator.searching.asker import Asker, PopulationAsker
from orchestrator.searching.halting import halting
from orchestrator.searching.interruption import Interruption
from orchestrator.searching.scratch import Staging, remove_scratch
from orchestrator.searching.seat import TrialActor
from orchestrator.searching.study import Study
from orchestrator.searching.task import SearchTask
from orchestrator.searching.trials import count_causes

logger = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 60.0
"""How long the remains of a stopped trial are waited for, whose workers may still be about to stop."""
_BEGUN = "begun"
"""Folder below the search's: for each trial the stages that it began, so that what it left can be removed."""


def run_search(task: SearchTask) -> list[Trial]:
    """Runs one phase to its end; trials that an earlier attempt finished are kept.

    Raises:
        SpecError: the cluster can never hold a trial's workers.
        JobFailed: every trial failed; the causes are counted.
        Interrupted: `should_stop` asked for an early end, before all trials were finished.
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
    if len(finished) < study.total and task.should_stop():
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
    halts = task.phase != "compress" and search.scheduler not in ("pbt", "none")
    if halts:
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
        "each_epoch": halts or task.watched,
    }
    scratch, interruption = task.folder / "tune", Interruption(asker.ended)
    write_json(scratch / "shared.json", shared)  # a file: what stands in `param_space` is copied with every trial
    tuner = tune.Tuner(
        TrialActor,
        param_space={"shared": str(scratch / "shared.json"), "bundles": workers},
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
    """Keeps Tune's own tables off the terminal and its own logs off the disk: nobody reads them, and each trial waits.

    An interruption is left to whoever drives the job.
    """
    wanted = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
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
