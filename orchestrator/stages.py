"""Every stage once: what its hash covers, and which work does it. The pipeline and the trials call the same ones.

A stage whose manifest is there is not run again, whoever made it: the training of a trial is the training of the
winner.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.workers import WorkerGroup, run_work
from jobs.context import WorkRef
from jobs.errors import FactorizationFailed, Interrupted, QuantizationFailed, WorkerLost
from jobs.layout import ParallelLayout
from jobs.models.pretrained import located
from jobs.records import StageManifest
from jobs.requests import (
    CandidateFile,
    ExportRequest,
    LowRankRequest,
    MeasureRequest,
    PruneRequest,
    QatRequest,
    QuantizeRequest,
    Recipe,
    ScoreRequest,
    TrainRequest,
)
from jobs.spec import JobSpec
from jobs.spec.compress import Qat
from jobs.spec.model import HuggingFaceModel
from jobs.spec.search import Phase
from jobs.spec.train import Layout, Retry
from orchestrator.environment import timing_host
from orchestrator.runs import Storage
from orchestrator.schemes import planned_schemes, variant_search

SCHEMA_VERSIONS = {
    "train": 1,
    "prune": 2,
    "low_rank": 1,
    "qat": 1,
    "export": 1,
    "quantize": 2,
    "measure": 2,
    "test": 1,
    "search": 1,
}
RESIZABLE = ("train", "prune", "low_rank", "qat")
"""Stages that go on from their checkpoints when the number of workers changes."""
TIMING_S = {"trial": 0.2, "final": 1.0}
"""Seconds of latency measurement for each file."""

_NO_RECIPE = frozenset({"parity", "stopped", "metric", "productive_s", "checkpoint_s"})

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Model:
    """A candidate on its way: a stored or exported model and where it comes from."""

    name: str
    parent: str | None
    stage: str
    manifest: StageManifest
    """Of the stage that exported or quantized it: holds model.onnx."""
    stored: StageManifest
    """Of the stage that trained or pruned it: holds model/."""
    float_manifest: StageManifest
    """Of the export of the float model that it is, or was quantized from."""
    recipe: dict[str, Any]


def train_config(spec: JobSpec) -> dict[str, Any]:
    """What a training's result depends on, beside the data and the user's code. No layout, no retries, no paths."""
    resolved = spec.resolved()
    if isinstance(spec.model, HuggingFaceModel):
        del resolved["model"]["args"]["path"]  # what lies there counts as code
    train = {key: value for key, value in resolved["train"].items() if key != "checkpoint"}
    data = {key: resolved["data"][key] for key in ("normalize", "augment")}
    return {"model": resolved["model"], "train": train, "data": data, "metric": spec.metric}


def prune_config(spec: JobSpec) -> dict[str, Any]:
    return {"prune": spec.resolved()["compress"]["prune"]}


def low_rank_config(spec: JobSpec) -> dict[str, Any]:
    return {"low_rank": spec.resolved()["compress"]["low_rank"]}


def search_config(spec: JobSpec, phase: Phase) -> dict[str, Any]:
    """What a search's result depends on: the space, the algorithm, and the base that trials differ from."""
    assert spec.search is not None
    search = {k: v for k, v in spec.resolved()["search"].items() if k not in ("concurrency", "winners")}
    config = {"phase": phase, "search": search, "train": train_config(spec)}
    if phase != "train":
        config["compress"] = spec.resolved()["compress"]
    return config


def _exchange(folder: Path) -> Path:
    """Where the workers of a stage meet: among what goes when the stage is complete, and new for each attempt."""
    return folder / "checkpoints" / f"shares-{secrets.token_hex(4)}"


class Stages:
    """The stages of one job on one group of workers.

    Args:
        code: digest of the user's modules, or "" where the spec uses none.
        dataset: folder of the prepared data set; its name is the fingerprint.
        group: gives the workers; called when the first stage really has to run.
        layouts: as planned; of an elastic job for each number of workers, most first.
        grace_s: how long a training that is told to end has for its checkpoint.
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

    def _perform(
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

    def train(self, spec: JobSpec, name: str = "train") -> StageManifest:
        return self._perform(
            "train",
            name,
            inputs={"dataset": self.dataset.name},
            config=train_config(spec),
            code=self.code,
            work="jobs.train.work:train",
            request=lambda folder: TrainRequest(
                model=located(spec.model).model_dump(mode="json"),
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
            ),
        )

    def prune(self, spec: JobSpec, parent: StageManifest, name: str = "prune") -> StageManifest:
        section = spec.compress.prune
        assert section is not None
        return self._perform(
            "prune",
            name,
            inputs={"dataset": self.dataset.name, "parent": parent.hash},
            config=prune_config(spec),
            code=self.code,
            work="jobs.compress.work:prune",
            request=lambda folder: PruneRequest(
                prune=section,
                parent=self.folder(parent) / "model",
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
            ),
        )

    def low_rank(self, spec: JobSpec, parent: StageManifest, name: str = "low_rank") -> StageManifest:
        """Raises FactorizationFailed where no layer gets cheaper."""
        section = spec.compress.low_rank
        assert section is not None
        return self._perform(
            "low_rank",
            name,
            inputs={"dataset": self.dataset.name, "parent": parent.hash},
            config=low_rank_config(spec),
            code=self.code,
            work="jobs.compress.work:low_rank",
            request=lambda folder: LowRankRequest(
                low_rank=section,
                parent=self.folder(parent) / "model",
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
            ),
        )

    def export(self, spec: JobSpec, stored: StageManifest, name: str) -> StageManifest:
        normalize = spec.data.normalize
        return self._perform(
            "export",
            name,
            inputs={"model": stored.hash},
            config={"normalize": normalize},
            code=self.code,
            work="jobs.export.work:export",
            request=lambda folder: ExportRequest(
                model=self.folder(stored) / "model",
                dataset=self.dataset,
                normalize=normalize,
                folder=folder,
                metadata={"producer": "thresher", "stage_hash": stored.hash, "dataset": self.dataset.name},
            ),
        )

    def quantize(self, spec: JobSpec, exported: StageManifest, scheme: str, name: str) -> StageManifest:
        normalize = spec.data.normalize
        search = variant_search(spec) if scheme == "int8_static" and self.timing == "final" else None
        config: dict[str, Any] = {"scheme": scheme, "normalize": normalize}
        if search is not None:
            # The variant that is chosen depends on what was asked for, and on the host that it was measured on.
            config["search"] = asdict(search) | {"limits": search.limits.model_dump(mode="json")}
            config["host"] = timing_host()
        return self._perform(
            "quantize",
            name,
            inputs={"dataset": self.dataset.name, "onnx": exported.hash},
            config=config,
            work="jobs.compress.work:quantize",
            request=lambda folder: QuantizeRequest(
                source=self.folder(exported) / "model.onnx",
                scheme=scheme,
                dataset=self.dataset,
                normalize=normalize,
                folder=folder,
                search=search,
            ),
        )

    def quantize_aware(self, spec: JobSpec, stored: StageManifest, exported: StageManifest, name: str) -> StageManifest:
        """The scheme int8_qat: a training of its own, on all workers."""
        assert spec.compress.quantize is not None
        section = spec.compress.quantize.qat or Qat()
        return self._perform(
            "qat",
            name,
            inputs={"dataset": self.dataset.name, "model": stored.hash, "onnx": exported.hash},
            config={"qat": section.model_dump(mode="json"), "train": train_config(spec)},
            code=self.code,
            work="jobs.compress.qat:quantize_aware",
            request=lambda folder: QatRequest(
                qat=section,
                model=self.folder(stored) / "model",
                source=self.folder(exported) / "model.onnx",
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
            ),
        )

    def measure(self, spec: JobSpec, models: list[Model], dense: str, name: str = "measure") -> StageManifest:
        return self._perform(
            "measure",
            name,
            inputs={"dataset": self.dataset.name, **{model.name: model.manifest.hash for model in models}},
            config={"dense": dense, "metric": spec.metric, "host": timing_host(), "timing": self.timing},
            work="jobs.measure.work:measure",
            request=lambda folder: MeasureRequest(
                candidates=tuple(
                    CandidateFile(
                        name=model.name,
                        file=self.folder(model.manifest) / "model.onnx",
                        float_file=self.folder(model.float_manifest) / "model.onnx",
                        parity=model.manifest.result["parity"],
                        parent=model.parent,
                    )
                    for model in models
                ),
                dense=dense,
                dataset=self.dataset,
                normalize=spec.data.normalize,
                metric=spec.metric,
                split="validation",
                latency_s=TIMING_S[self.timing],
                folder=_exchange(folder),
            ),
        )

    def test(self, spec: JobSpec, models: list[Model], name: str = "test") -> StageManifest:
        return self._perform(
            "test",
            name,
            inputs={"dataset": self.dataset.name, **{model.name: model.manifest.hash for model in models}},
            config={"metric": spec.metric},
            work="jobs.measure.work:score",
            request=lambda folder: ScoreRequest(
                files={model.name: self.folder(model.manifest) / "model.onnx" for model in models},
                dataset=self.dataset,
                normalize=spec.data.normalize,
                metric=spec.metric,
                split="test",
                folder=_exchange(folder),
            ),
        )

    def _recipe(self, spec: JobSpec) -> Recipe:
        return Recipe(
            train=spec.train,
            data=spec.data,
            metric=spec.metric,
            layout=self.layouts[0],
            elsewise=tuple(self.layouts[1:]),
            micro_batch=self.micro_batch,
            nvme_path=spec.layout.nvme_path if isinstance(spec.layout, Layout) else None,
        )

    def family(self, spec: JobSpec, dense: StageManifest, suffix: str = "") -> list[Model]:
        """The dense model and all that the spec's `compress:` makes of it, exported: parents before children."""
        schemes = [each.scheme for each in planned_schemes(spec)]
        models: list[Model] = []
        for stage, name, parent, source, recipe in self._float_models(spec, dense, suffix):
            exported = self.export(spec, source, f"export/{name}")
            models.append(
                Model(
                    name=name,
                    parent=parent,
                    stage=stage,
                    manifest=exported,
                    stored=source,
                    float_manifest=exported,
                    recipe=recipe,
                )
            )
            for scheme in schemes:
                label = f"quantize/{name}-{scheme}"
                try:
                    if scheme == "int8_qat":
                        quantized = self.quantize_aware(spec, source, exported, label)
                    else:
                        quantized = self.quantize(spec, exported, scheme, label)
                except QuantizationFailed as error:
                    self.on_report({"event": "refused", "artifact": f"{name}-{scheme}", "reason": str(error)})
                    continue
                models.append(
                    Model(
                        name=f"{name}-{scheme}",
                        parent=name,
                        stage="quantize",
                        manifest=quantized,
                        stored=source,
                        float_manifest=exported,
                        recipe={
                            "scheme": scheme,
                            **{k: v for k, v in quantized.result.items() if k not in _NO_RECIPE},
                        },
                    )
                )
        return models

    def _float_models(
        self, spec: JobSpec, dense: StageManifest, suffix: str
    ) -> Iterator[tuple[str, str, str | None, StageManifest, dict[str, Any]]]:
        """(stage, name, name of the parent, what holds model/, recipe) of each model that is stored in floats."""
        name, stored = f"dense{suffix}", dense
        yield "dense", name, None, dense, train_config(spec)
        if spec.compress.prune is not None:
            stored = self.prune(spec, dense, f"prune{suffix}")
            left = {"left_whole": stored.result["left_whole"]}
            yield "prune", f"pruned{suffix}", name, stored, prune_config(spec) | left
            name = f"pruned{suffix}"
        if spec.compress.low_rank is not None:
            try:
                factored = self.low_rank(spec, stored, f"low_rank{suffix}")
            except FactorizationFailed as error:
                self.on_report({"event": "refused", "artifact": f"lowrank{suffix}", "reason": str(error)})
                return
            ranks = {"ranks": factored.result["ranks"]}
            yield "low_rank", f"lowrank{suffix}", name, factored, low_rank_config(spec) | ranks
