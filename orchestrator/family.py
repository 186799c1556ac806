"""The models that a job makes of one training: the dense one and what `compress:` makes of it, stage by stage."""

from collections.abc import Iterator
from typing import Any

from jobs.errors import FactorizationFailed, QuantizationFailed
from jobs.records import StageManifest
from jobs.spec import JobSpec
from orchestrator.planning.schemes import planned_schemes
from orchestrator.stage_configs import low_rank_config, pack_config, prune_config, train_config
from orchestrator.stages import Model, Stages

_NO_RECIPE = frozenset({"parity", "stopped", "metric", "productive_s", "checkpoint_s"})


def family(stages: Stages, spec: JobSpec, dense: StageManifest, suffix: str = "") -> list[Model]:
    """The dense model and all that the spec's `compress:` makes of it, exported: parents before children."""
    schemes = [each.scheme for each in planned_schemes(spec)]
    models: list[Model] = []
    for stage, name, parent, source, recipe in _float_models(stages, spec, dense, suffix):
        exported = stages.export(spec, source, f"export/{name}")
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
                    quantized = stages.quantize_aware(spec, source, exported, label)
                else:
                    quantized = stages.quantize(spec, exported, scheme, label)
            except QuantizationFailed as error:
                stages.on_report({"event": "refused", "artifact": f"{name}-{scheme}", "reason": str(error)})
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
    if spec.compress.pack is not None:
        models.append(_packed(stages, spec, dense, suffix))
    return models


def _float_models(
    stages: Stages, spec: JobSpec, dense: StageManifest, suffix: str
) -> Iterator[tuple[str, str, str | None, StageManifest, dict[str, Any]]]:
    """(stage, name, name of the parent, what holds model/, recipe) of each model that is stored in floats."""
    name, stored = f"dense{suffix}", dense
    yield "dense", name, None, dense, train_config(spec)
    if spec.compress.prune is not None:
        stored = stages.prune(spec, dense, f"prune{suffix}")
        left = {"left_whole": stored.result["left_whole"]}
        yield "prune", f"pruned{suffix}", name, stored, prune_config(spec) | left
        name = f"pruned{suffix}"
    if spec.compress.low_rank is not None:
        try:
            factored = stages.low_rank(spec, stored, f"low_rank{suffix}")
        except FactorizationFailed as error:
            stages.on_report({"event": "refused", "artifact": f"lowrank{suffix}", "reason": str(error)})
            return
        ranks = {"ranks": factored.result["ranks"]}
        yield "low_rank", f"lowrank{suffix}", name, factored, low_rank_config(spec) | ranks


def _packed(stages: Stages, spec: JobSpec, dense: StageManifest, suffix: str) -> Model:
    name = f"packed{suffix}"
    shared = stages.share(spec, dense, f"share{suffix}")
    exported = stages.export(spec, shared, f"export/{name}")
    packed = stages.pack(shared, exported, f"pack{suffix}")
    return Model(
        name=name,
        parent=f"dense{suffix}",
        stage="pack",
        manifest=packed,
        stored=shared,
        float_manifest=exported,
        recipe=pack_config(spec) | packed.result | {"centroids": shared.result["centroids"]},
        packed=True,
    )
