"""One stage performed: found in the storage, or made by a work that outlives the loss of workers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster.workers import WorkerGroup, run_work
from jobs.context import WorkRef
from jobs.errors import Interrupted, WorkerLost
from jobs.layout import ParallelLayout
from jobs.records import StageManifest
from jobs.spec.train import Retry
from orchestrator.runs import Storage
from orchestrator.stage_configs import SCHEMA_VERSIONS

RESIZABLE = ("train", "segment", "prune", "low_rank", "qat", "share")
"""Stages that go on from their checkpoints when the number of workers changes."""

Report = Callable[[dict[str, Any]], None]


class StageRunner:
    """Performs stages on one group of workers: takes what the storage holds, or has a work make it.

    Args:
        code: digest of the user's modules, or "" where the spec uses none.
        dataset: folder of the prepared data set; its name is the fingerprint.
        group: gives the workers; called when the first stage really has to run.
        layouts: as planned; of an elastic job for each number of workers, most first.
        retry: how many losses of workers a stage outlives, and how long a training has for its last checkpoint.
        on_report: gets what the work reports while it runs.
        on_stage: gets (name, manifest, reused) of each stage that is complete.
        should_stop: asked while work runs; True ends it early.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        code: str,
        dataset: Path,
        group: Callable[[], WorkerGroup],
        layouts: Sequence[ParallelLayout],
        micro_batch: int | None,
        retry: Retry,
        on_report: Report,
        on_stage: Callable[[str, StageManifest, bool], None],
        should_stop: Callable[[], bool],
        timing: str = "final",
    ) -> None:
        self.storage = storage
        self.code = code
        self.dataset = dataset
        self.group = group
        self.layouts = layouts
        self.micro_batch = micro_batch
        self.retry = retry
        self.on_report = on_report
        self.on_stage = on_stage
        self.should_stop = should_stop
        self.timing = timing

    def perform(
        self,
        stage: str,
        name: str,
        *,
        inputs: dict[str, str],
        config: dict[str, Any],
        work: str,
        request: Callable[[Path], Any],
        code: str = "",
    ) -> StageManifest:
        def restarted(loss: WorkerLost, count: int) -> None:
            self.on_report({"event": "restart", "stage": name, "cause": str(loss), "count": count})

        def resized(workers: int, seconds: float) -> None:
            self.on_report({"event": "resize", "stage": name, "workers": workers, "seconds": seconds})

        def do(folder: Path) -> dict[str, Any] | None:
            self.on_report({"event": "stage_started", "stage": name, "stage_hash": folder.stem})
            result = run_work(
                self.group(),
                WorkRef(work),
                request(folder),
                on_report=self._heed_grace(name),
                on_restart=restarted,
                resizable=stage in RESIZABLE,
                on_resize=resized,
                should_stop=self.should_stop,
                max_failures=self.retry.max_failures,
                stop_grace_s=self.retry.grace_s,
            )
            return None if result.get("stopped") else result

        manifest, reused = self.storage.perform(
            stage,
            inputs=inputs,
            config=config,
            code=code,
            schema_version=SCHEMA_VERSIONS[stage],
            do=do,
        )
        if manifest is None:
            raise Interrupted(f"{name} was stopped; what it did so far is kept")
        self.on_stage(name, manifest, reused)
        return manifest

    def _heed_grace(self, name: str) -> Report:
        """Passes reports on, and warns once of checkpoints that take longer than the grace time."""
        warned = False

        def on_report(report: dict[str, Any]) -> None:
            nonlocal warned
            self.on_report(report)
            if report["event"] == "checkpoint" and report["seconds"] > self.retry.grace_s and not warned:
                warned = True
                message = (
                    f"{name}: a checkpoint takes {report['seconds']:.3g} s, and retry.grace_s gives it "
                    f"{self.retry.grace_s:.3g} s: when the job is told to end, what was trained after the last regular "
                    "one is lost"
                )
                self.on_report({"event": "warning", "stage": name, "message": message})

        return on_report

    def folder(self, manifest: StageManifest) -> Path:
        return self.storage.stage(manifest.hash)
