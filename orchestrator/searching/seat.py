"""A seat of a search: the actor of Ray Tune that runs one trial after the other on a warm gang.

Apart from the search itself, because each seat's process imports this: it needs neither Optuna nor what is built on it.
"""

import json
import logging
import math
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory

from cluster.gang import Gang
from jobs.context import WorkRef
from jobs.errors import JobFailed, WorkerLost
from jobs.layout import ParallelLayout
from jobs.records import Segment
from jobs.spec import JobSpec
from jobs.spec.search import Phase
from jobs.storage import read_json
from orchestrator.runs import Storage
from orchestrator.searching.trials import Leg, TrialTask, failed_trial, failure_cause, lost_to_memory, run_trial
from orchestrator.stages import Stages

logger = logging.getLogger(__name__)

LOOK_S = 60.0
"""How often a trial that shows nothing is looked at."""
GATHER_S = 0.5
"""How long epochs are gathered before they are shown to Tune, where nobody decides upon a single one. Half as long
they are gathered at the worker before: what is shown is late by the sum of both at most."""
STOP_TIMEOUT_S = 60.0
"""Beside the grace that the workers have for a last checkpoint."""


class TrialActor(tune.Trainable):
    """A seat for trials: keeps its gang of workers warm from one to the next.

    The trial runs in a thread and hands over its epochs; where a scheduler or a callback may stop the trial between
    two of them, each `step` of Tune takes one, and else those of some time.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """What Tune holds for a seat. The actor itself only waits, and needs nothing: all bundles are its gang's."""
        return PlacementGroupFactory([{}, *config["bundles"]])

    def setup(self, config: dict[str, Any]) -> None:
        shared = read_json(Path(config["shared"]))
        self.gather_s = 0.0 if shared["each_epoch"] else GATHER_S
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
            gather_s=self.gather_s / 2,
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
        items = [self._shown_next()]
        until = time.monotonic() + self.gather_s
        while "trial" not in items[-1] and (left := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                items.append(self.epochs.get(timeout=left))
        last = items[-1]
        reports = [item | {"number": self.shown + place} for place, item in enumerate(items, 1) if "trial" not in item]
        self.shown += len(reports)
        # Tune flattens what is nested, hence the texts.
        result: dict[str, Any] = {"reports": json.dumps(reports)}
        if "trial" in last:
            metric = last["trial"]["values"].get("metric")
            # Tune always wants the metric; ASHA passes over NaN.
            metric = math.nan if metric is None else metric
            return result | {"done": True, "record": json.dumps(last["trial"]), "metric": metric, "gang_s": self.gang_s}
        trained = last.get("total_steps") == last["step"]
        return result | {"metric": last["metric"], "epochs": self.shown, "trained": trained}

    def _shown_next(self) -> dict[str, Any]:
        """An epoch may take hours. A trial whose workers are stuck ends by itself, after `retry.stall_timeout_s`."""
        while self.thread.is_alive():
            with suppress(queue.Empty):
                return self.epochs.get(timeout=LOOK_S)
        with suppress(queue.Empty):
            return self.epochs.get_nowait()
        raise JobFailed("the trial ended without a word of what became of it")

    def _end(self) -> None:
        self.stopping.set()
        timeout_s = STOP_TIMEOUT_S + self.base.retry.grace_s
        self.thread.join(timeout_s)
        if self.thread.is_alive():
            raise JobFailed(f"the trial did not stop within {timeout_s:.0f} s")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end()
        if self.gang is not None:
            self.gang.stop()


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
