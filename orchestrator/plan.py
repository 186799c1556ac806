"""JobSpec -> JobPlan: every default resolved, the layout chosen, memory estimated, the demand known.

Nothing is changed and nothing heavy is imported: a plan takes well under a second.
"""

import os
from pathlib import Path
from typing import Any

from jobs import data
from jobs.code import digest_modules
from jobs.errors import SpecError
from jobs.layout import share_batch
from jobs.models.factory import inspect_factory
from jobs.models.registry import summarize
from jobs.records import DatasetInfo, Demand, JobPlan, ModelSummary, StagePlan
from jobs.requests import Recipe
from jobs.spec import JobSpec
from jobs.spec.model import FactoryModel
from jobs.spec.train import Layout
from jobs.train.config import deepspeed_config
from orchestrator.layouts import PROCESS_BYTES, choose_layout
from orchestrator.runs import Storage, stage_hash
from orchestrator.stages import SCHEMA_VERSIONS, prune_config, search_config, train_config


def plan_job(spec: JobSpec, storage: Storage, *, memory_bytes: int | None = None) -> JobPlan:
    """Plans a job. Raises SpecError (exit code 2) for what can be known to be wrong before anything starts.

    Args:
        memory_bytes: of the machine that all workers share; default: this one's.
    """
    info = data.inspect(spec.data, spec.train.loss)
    # A plan changes nothing: digests are kept where a run has made the folder for them.
    kept = storage.datasets if storage.datasets.is_dir() else None
    fingerprint = data.fingerprint(spec.data, spec.train.loss, kept)
    check_fit(spec, info)
    code = code_digest(spec)
    model = model_summary(spec, info, code, storage)
    memory = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    choice = choose_layout(spec, model, info, memory)
    layout, share, needed = choice.layout, choice.share, choice.memory
    warnings = [choice.warning] if choice.warning else []
    total_steps = count_steps(spec, info)
    check_searched_batches(spec, info)
    if not model.layout_invariant:
        warnings += [
            "layout_invariant: false: the model has layers of your own; where they look at the micro-batch (stock "
            "batch normalization, dropout), another number of workers gives slightly different losses"
        ]
    hashes = {"dataset": fingerprint, "code": code}
    return JobPlan(
        spec=spec.resolved(),
        dataset=info,
        model=model,
        stages=tuple(plan_stages(spec, storage, fingerprint, code, hashes)),
        layout={"data": layout.data, "tensor": 1, "pipeline": 1, "zero_stage": layout.zero_stage, "offload": "none"},
        batch={"global": share.global_batch, "micro": share.micro, "accumulation": share.accumulation},
        total_steps=total_steps,
        alternatives=choice.alternatives,
        memory=needed,
        deepspeed=deepspeed_config(
            share,
            zero_stage=layout.zero_stage,
            precision=spec.train.precision,
            gradient_clip=spec.train.gradient_clip,
        ),
        demand=Demand(
            workers=spec.num_workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            memory_bytes_per_worker=needed.total + PROCESS_BYTES,
        ),
        hashes=hashes,
        warnings=tuple(warnings),
    )


def check_fit(spec: JobSpec, info: DatasetInfo) -> None:
    """Refuses a spec that its data contradicts."""
    weights = spec.train.class_weights
    num_classes = len(info.classes)
    if isinstance(weights, tuple) and len(weights) != num_classes:
        raise SpecError.at(
            "train.class_weights",
            f"{len(weights)} weights for {num_classes} classes ({', '.join(info.classes[:10])})",
            list(weights),
            f"{num_classes} weights, in label order",
        )
    calibration = spec.data.split.calibration
    if spec.compress.quantize and calibration > info.num_samples["train"]:
        raise SpecError.at(
            "data.split.calibration",
            "more than there are training samples",
            calibration,
            f"at most {info.num_samples['train']}",
        )


def count_steps(spec: JobSpec, info: DatasetInfo) -> int:
    """Number of optimizer steps. Raises SpecError where the samples hold no whole batch."""
    num_samples = info.num_samples["train"]
    steps = Recipe(train=spec.train, data=spec.data, metric=spec.metric).total_steps(num_samples)
    if steps < 1:
        raise SpecError.at(
            "train.batch_size",
            f"{spec.train.epochs} epochs of {num_samples} samples hold no whole batch",
            spec.train.batch_size,
            f"at most {(spec.train.epochs or 1) * num_samples}",
        )
    return steps


def check_searched_batches(spec: JobSpec, info: DatasetInfo) -> None:
    """Refuses a searched batch size that the workers can't divide, or the samples can't fill."""
    key = "train.batch_size"
    if spec.search is None or key not in spec.search.space:
        return
    micro_batch = spec.layout.micro_batch if isinstance(spec.layout, Layout) else None
    for value in spec.search.space[key].probes:
        trial = spec.replace({key: value})
        try:
            share_batch(trial.train.batch_size, trial.num_workers, micro_batch)
            count_steps(trial, info)
        except SpecError as error:
            problem = error.problems[0]
            raise SpecError.at(f"search.space.{key}", problem.message, value, problem.allowed) from None


def code_digest(spec: JobSpec) -> str:
    """The digest of the user's modules, where the spec uses any; else empty. Raises SpecError if they are missing."""
    return digest_modules(Path(spec.code.working_dir)) if spec.uses_own_code else ""


def model_summary(spec: JobSpec, info: DatasetInfo, code: str, storage: Storage) -> ModelSummary:
    if isinstance(spec.model, FactoryModel):
        return inspect_factory(
            spec.model,
            info.input_shape,
            info.outputs,
            working_dir=Path(spec.code.working_dir).absolute(),
            code=code,
            cache=storage.root / "inspected",
        )
    return summarize(spec.model, info.input_shape, info.outputs)


def plan_stages(
    spec: JobSpec, storage: Storage, fingerprint: str, code: str, hashes: dict[str, str]
) -> list[StagePlan]:
    """What will run, what is there already, what is left out, and why. Fills in the hashes that are known."""

    def known(stage: str, inputs: dict[str, str], config: dict[str, Any], with_code: bool = True) -> StagePlan:
        digest = stage_hash(
            stage,
            inputs=inputs,
            config=config,
            code=code if with_code else "",
            schema_version=SCHEMA_VERSIONS[stage],
        )
        hashes[stage] = digest
        if storage.manifest(digest):
            return StagePlan(name=stage, action="reuse", reason="a complete result is in the storage", hash=digest)
        partial = storage.stage(digest).with_suffix(".partial").exists()
        reason = "goes on from what an earlier attempt left" if partial else "no result yet"
        return StagePlan(name=stage, action="run", reason=reason, hash=digest)

    def depends(name: str, on: str) -> StagePlan:
        return StagePlan(name=name, action="run", reason=f"depends on what {on} finds")

    ready = (storage.datasets / fingerprint / "dataset.json").exists()
    reason = "the same data is prepared" if ready else "not prepared yet"
    stages = [StagePlan(name="prepare", action="reuse" if ready else "run", reason=reason, hash=fingerprint)]
    phases = spec.search.phases() if spec.search else ()
    prune = spec.compress.prune
    searched_training = "train" in phases or "joint" in phases
    if searched_training:
        stages.append(known("search", {"dataset": fingerprint}, search_config(spec, phases[0])))
        stages.append(depends("train", "the search"))
    else:
        stages.append(known("train", {"dataset": fingerprint}, train_config(spec)))
    if "compress" in phases:
        stages.append(depends("search/compress", "the training"))
    if prune is None and not spec.compresses_by_search:
        stages.append(StagePlan(name="prune", action="skip", reason="the spec has no compress.prune"))
    elif phases:
        stages.append(depends("prune", "the search"))
    else:
        inputs = {"dataset": fingerprint, "parent": hashes["train"]}
        stages.append(known("prune", inputs, prune_config(spec)))
    stages.append(StagePlan(name="export", action="run", reason="for each model that the stages before give"))
    if spec.compress.quantize:
        schemes = ", ".join(spec.compress.quantize.schemes)
        stages.append(StagePlan(name="quantize", action="run", reason=f"{schemes} of each exported model"))
    else:
        stages.append(StagePlan(name="quantize", action="skip", reason="the spec has no compress.quantize"))
    stages.append(StagePlan(name="measure", action="run", reason="validation split, through the exported files"))
    stages.append(StagePlan(name="test", action="run", reason="the dense and the selected artifact alone"))
    return stages
