"""Every stage once: what goes into it, and which work does it. The pipeline and the trials call the same ones.

A stage whose manifest is there is not run again, whoever made it: the training of a trial is the training of the
winner.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.models.pretrained import located
from jobs.records import Segment, StageManifest
from jobs.requests import (
    PACK_NAME,
    CandidateFile,
    ExportRequest,
    LowRankRequest,
    MeasureRequest,
    PackRequest,
    PruneRequest,
    QatRequest,
    QuantizeRequest,
    Recipe,
    ScoreRequest,
    ShareRequest,
    TrainRequest,
)
from jobs.spec import JobSpec
from jobs.spec.compress import Qat
from jobs.spec.train import Layout
from orchestrator.environment import timing_host
from orchestrator.planning.schemes import variant_search
from orchestrator.stage_configs import low_rank_config, pack_config, prune_config, train_config
from orchestrator.stage_runner import StageRunner

TIMING_S = {"trial": 0.2, "final": 1.0}
"""Seconds of latency measurement for each file."""


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
    packed: bool = False
    """The stage of `manifest` holds model.thpack too, which is the artifact, and model.onnx what it restores."""


def _exchange(folder: Path) -> Path:
    """Where the workers of a stage meet: among what goes when the stage is complete, and new for each attempt."""
    return folder / "checkpoints" / f"shares-{secrets.token_hex(4)}"


class Stages(StageRunner):
    """The stages of one job."""

    def train(self, spec: JobSpec, name: str = "train") -> StageManifest:
        return self.perform(
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

    def segment(
        self, spec: JobSpec, before: Sequence[Segment], params: dict[str, Any], until_step: int, name: str = "train"
    ) -> StageManifest:
        """A part of a training, from the end of the segment before.

        Args:
            spec: with `params` in it.
            before: the segments that led there; none for the first.
            until_step: where it ends; the segment that ends with the training gives the model.
        """
        parts = [{"params": part.params, "until_step": part.until_step} for part in before]
        parent = before[-1].stage if before else None
        return self.perform(
            "segment",
            name,
            inputs={"dataset": self.dataset.name} | ({"parent": parent} if parent else {}),
            config=train_config(spec) | {"lineage": [*parts, {"params": params, "until_step": until_step}]},
            code=self.code,
            work="jobs.train.work:train",
            request=lambda folder: TrainRequest(
                model=located(spec.model).model_dump(mode="json"),
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
                until_step=until_step,
                start=self.storage.stage(parent) / "checkpoint" if parent else None,
            ),
        )

    def lineage(self, base: JobSpec, lineage: Sequence[Segment], name: str = "train") -> StageManifest:
        """The trained model at the end of a lineage; what the storage has lost of it is trained again."""
        found = self.storage.manifest(lineage[-1].stage)
        if found is not None:
            self.on_stage(name, found, True)
            return found
        for place, part in enumerate(lineage):
            last = place == len(lineage) - 1
            spec = base.replace(part.params)
            called = name if last else f"{name}/until-{part.until_step}"
            found = self.segment(spec, lineage[:place], part.params, part.until_step, called)
        assert found is not None
        return found

    def prune(self, spec: JobSpec, parent: StageManifest, name: str = "prune") -> StageManifest:
        assert spec.compress.prune is not None
        request = partial(PruneRequest, spec.compress.prune)
        return self._retrain("prune", name, spec, parent, prune_config(spec), "jobs.compress.work:prune", request)

    def low_rank(self, spec: JobSpec, parent: StageManifest, name: str = "low_rank") -> StageManifest:
        """Raises FactorizationFailed where no layer gets cheaper."""
        assert spec.compress.low_rank is not None
        request = partial(LowRankRequest, spec.compress.low_rank)
        work = "jobs.compress.work:low_rank"
        return self._retrain("low_rank", name, spec, parent, low_rank_config(spec), work, request)

    def share(self, spec: JobSpec, parent: StageManifest, name: str = "share") -> StageManifest:
        assert spec.compress.pack is not None
        request = partial(ShareRequest, spec.compress.pack)
        return self._retrain("share", name, spec, parent, pack_config(spec), "jobs.compress.packing:share", request)

    def _retrain(
        self,
        stage: str,
        name: str,
        spec: JobSpec,
        parent: StageManifest,
        config: dict[str, Any],
        work: str,
        request: Callable[..., PruneRequest | LowRankRequest | ShareRequest],
    ) -> StageManifest:
        """A stage that changes a trained model and trains it once more."""
        return self.perform(
            stage,
            name,
            inputs={"dataset": self.dataset.name, "parent": parent.hash},
            config=config,
            code=self.code,
            work=work,
            request=lambda folder: request(
                parent=self.folder(parent) / "model",
                recipe=self._recipe(spec),
                dataset=self.dataset,
                folder=folder,
            ),
        )

    def pack(self, shared: StageManifest, exported: StageManifest, name: str = "pack") -> StageManifest:
        return self.perform(
            "pack",
            name,
            inputs={"model": shared.hash, "onnx": exported.hash},
            config={},
            work="jobs.compress.packing:pack",
            request=lambda folder: PackRequest(
                model=self.folder(shared) / "model", onnx=self.folder(exported) / "model.onnx", folder=folder
            ),
        )

    def export(self, spec: JobSpec, stored: StageManifest, name: str) -> StageManifest:
        normalize = spec.data.normalize
        return self.perform(
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
        return self.perform(
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
        return self.perform(
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
        return self.perform(
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
                        parity=model.float_manifest.result["parity"]
                        if model.packed
                        else model.manifest.result["parity"],
                        archive=self.folder(model.manifest) / PACK_NAME if model.packed else None,
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
        return self.perform(
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
            smaller_layouts=tuple(self.layouts[1:]),
            micro_batch=self.micro_batch,
            nvme_path=spec.layout.nvme_path if isinstance(spec.layout, Layout) else None,
        )
