"""JobSpec -> JobPlan: every default resolved, the layout chosen, memory estimated, the demand known.

Nothing is changed and nothing heavy is imported: a plan takes well under a second.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs import data
from jobs.code import digest_modules
from jobs.errors import SpecError
from jobs.layout import ParallelLayout, share_batch
from jobs.models.factory import inspect_factory
from jobs.models.pretrained import digest_folder
from jobs.models.registry import summarize
from jobs.records import DatasetInfo, Demand, JobPlan, ModelSummary, PlannedScheme, StagePlan
from jobs.requests import Recipe
from jobs.spec import JobSpec
from jobs.spec.model import ForeignModel, HuggingFaceModel
from jobs.spec.space import probes
from jobs.train.config import planned_config
from jobs.train.memory import estimate, sample_bytes
from orchestrator.planning.compression import check_compression, check_pruning_memory, check_rounding
from orchestrator.planning.layouts import PROCESS_BYTES, LayoutChoice, Variant, available_bytes, choose_layout
from orchestrator.planning.schemes import intended_host, planned_schemes
from orchestrator.runs import Storage, stage_hash
from orchestrator.stage_configs import (
    SCHEMA_VERSIONS,
    low_rank_config,
    pack_config,
    prune_config,
    search_config,
    train_config,
)

FEW_CALIBRATION_SAMPLES = 64
NEED_CALIBRATION = frozenset({"int8_static", "int8_qat"})
"""Schemes that give activations the ranges that calibration has shown."""


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
    total_steps = count_steps(spec, info)
    choice, *fewer = choose_layouts(spec, info, model, memory)
    layout, share, needed = choice.layout, choice.share, choice.memory
    warnings = list(choice.warnings)
    if not model.layout_invariant:
        warnings += [
            "layout_invariant: false: the model has layers of your own; where they look at the micro-batch (stock "
            "batch normalization, dropout), another number of workers gives slightly different losses"
        ]
    evaluations = len(most_evaluations(spec, info.num_samples["train"]))
    warnings += spec.search.remarks(evaluations) if spec.search else []
    warnings += quantization_warnings(spec, info)
    hashes = {"dataset": fingerprint, "code": code}
    target = spec.compress.target
    return JobPlan(
        spec=spec.resolved(),
        dataset=info,
        model=model,
        stages=tuple(plan_stages(spec, storage, fingerprint, code, hashes)),
        layout=asdict(layout),
        smaller_layouts=tuple(asdict(each.layout) for each in fewer),
        batch={"global": share.global_batch, "micro": share.micro, "accumulation": share.accumulation},
        total_steps=total_steps,
        alternatives=choice.alternatives,
        memory=needed,
        deepspeed=planned_config(spec, share, layout),
        demand=Demand(
            workers=layout.size,
            fewest_workers=fewer[-1].layout.size if fewer else layout.size,
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            memory_bytes_per_worker=needed.total + PROCESS_BYTES,
        ),
        host=f"{'here' if target is None else target.name}: {intended_host(spec).words}",
        schemes=tuple(PlannedScheme(name=each.scheme, reason=each.reason) for each in planned_schemes(spec)),
        hashes=hashes,
        warnings=tuple(warnings),
    )


def quantization_warnings(spec: JobSpec, info: DatasetInfo) -> list[str]:
    """What is to be said of quantization before anything runs."""
    section, target = spec.compress.quantize, spec.compress.target
    if section is None:
        return []
    warnings = []
    count = min(spec.data.split.calibration, info.num_samples["train"])
    if count < FEW_CALIBRATION_SAMPLES and NEED_CALIBRATION & set(section.schemes):
        warnings.append(
            f"{count} calibration samples are few: the ranges of activations will be those of these samples "
            f"(data.split.calibration, and the training split; {FEW_CALIBRATION_SAMPLES} or more are better)"
        )
    if target is not None:
        warnings.append(
            f"artifacts are for {target.name} ({intended_host(spec).words}), but everything is measured here: "
            "latencies are this host's, not the target's"
        )
    return warnings


def choose_layouts(spec: JobSpec, info: DatasetInfo, model: ModelSummary, memory_bytes: int) -> list[LayoutChoice]:
    """The layout for each number of workers that the job may have and that has a legal one, most workers first.

    Raises SpecError, that of the most workers, if there is none.
    """
    fewest, most = spec.worker_range
    found: list[LayoutChoice] = []
    refusals: list[SpecError] = []
    for workers in range(most, fewest - 1, -1):
        sized = spec.with_workers(workers)
        own, searched = Variant(sized, model), searched_variants(sized, info, model)
        try:
            choice = choose_layout(own, info, memory_bytes, variants=[each.variant for each in searched])
            check_searched(searched, choice.layout, info)
            check_pruning_memory(sized, model, choice.layout, memory_bytes)
            more = check_recovery(own, choice.layout, info, memory_bytes) + check_rounding(sized, info, choice.layout)
        except SpecError as error:
            refusals.append(error)
        else:
            found.append(replace(choice, warnings=(*choice.warnings, *more)))
    if found:
        return found
    if fewest == most:
        raise refusals[0]
    reason = refusals[0].problems[0]
    raise SpecError.at(
        "resources.workers",
        f"no number of workers from {fewest} to {most} has a legal layout; with {most}: {reason}",
        [fewest, most],
        "a range with a number that the batch divides over",
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
    check_compression(spec, info)
    split = spec.data.split
    calibration = split.calibration
    asked = "calibration" in split.model_fields_set  # left out, it is at most so many
    if spec.compress.quantize and asked and calibration > info.num_samples["train"]:
        raise SpecError.at(
            "data.split.calibration",
            "more than there are training samples",
            calibration,
            f"at most {info.num_samples['train']}",
        )
    count = min(calibration, info.num_samples["train"])
    if spec.compress.quantize and NEED_CALIBRATION & set(spec.compress.quantize.schemes) and count < 16:
        raise SpecError.at(
            "compress.quantize.schemes",
            f"{count} training samples are too few to calibrate 8 bits with",
            list(spec.compress.quantize.schemes),
            "int8_dynamic, int4_weight, fp16, bf16; or 16 training samples",
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


def most_evaluations(spec: JobSpec, num_samples: int) -> tuple[int, ...]:
    """The steps after which a training looks at validation: the most, where the batch is searched."""
    space = spec.search.space if spec.search else {}
    key = "train.batch_size"
    trials = [spec, *(spec.replace(values) for values in (probes(space, key) if key in space else ()))]
    recipes = [Recipe(train=trial.train, data=trial.data, metric=trial.metric) for trial in trials]
    steps = [tuple(sorted(recipe.evaluate_after(num_samples))) for recipe in recipes]
    return max(steps, key=lambda each: (len(each), each))


@dataclass(frozen=True)
class Searched:
    """A value that a search may try, and the spec that it would make."""

    key: str
    value: Any
    variant: Variant


def searched_variants(spec: JobSpec, info: DatasetInfo, model: ModelSummary) -> list[Searched]:
    """What the layout must serve beside the spec itself: values by which its legality or the batch may change.

    A model that is not ours is taken as it is: what its own arguments do is seen when it is built.
    """

    def variant(key: str, values: dict[str, Any]) -> Variant:
        trial = spec.replace(values)
        if isinstance(trial.model, ForeignModel) or not key.startswith("model."):
            return Variant(trial, model)
        return Variant(trial, summarize(trial.model, info.signature))

    space = spec.search.space if spec.search else {}
    return [
        Searched(key, values[key], variant(key, values))
        for key in space
        if key in ("train.batch_size", "train.precision") or key.startswith("model.args.")
        for values in probes(space, key)
    ]


def check_searched(searched: list[Searched], layout: ParallelLayout, info: DatasetInfo) -> None:
    """Refuses searched values that the layout does not go with, or batches that the samples can't fill."""
    for each in searched:
        try:
            each.variant.share(layout)
            count_steps(each.variant.spec, info)
        except SpecError as error:
            problem = error.problems[0]
            message = problem.message if problem.path == each.key else f"{problem.path}: {problem.message}"
            raise SpecError.at(f"search.space.{each.key}", message, each.value, problem.allowed) from None


def check_recovery(own: Variant, layout: ParallelLayout, info: DatasetInfo, memory_bytes: int) -> list[str]:
    """What is to be said of the recovery after pruning, low rank or for a pack, where it leaves the training's layout.

    It is data-parallel over the same workers: a pruned model is small, and its widths need not divide any more.
    Raises SpecError if the batch does not divide over so many.
    """
    spec = own.spec
    if not (spec.prunes or spec.compress.low_rank or spec.packs) or layout.data == layout.size:
        return []
    parallel = ParallelLayout(data=layout.size, zero_stage=layout.zero_stage, offload=layout.offload)
    try:
        share = share_batch(spec.train.batch_size, parallel.data, None, own.model.norm_group)
    except SpecError as error:
        problem = error.problems[0]
        message = f"{problem.message}: so the recovery after pruning runs, whatever the layout of the training"
        raise SpecError.at(problem.path, message, problem.value, problem.allowed) from None
    train = spec.train
    options: dict[str, Any] = {"precision": train.precision, "optimizer": train.optimizer.name}
    need = estimate(own.model, parallel, share, sample_bytes=sample_bytes(info), **options)
    if need.total <= available_bytes(memory_bytes, layout.size):
        return []
    return [
        "the recovery after pruning is data-parallel over all workers; unpruned, the model would need "
        f"{need.total / 1e9:.1f} GB on each of them, which is more than this machine has"
    ]


def code_digest(spec: JobSpec) -> str:
    """The digest of the user's modules or of the model's folder, where the spec uses any; else empty.

    Raises SpecError if they are missing.
    """
    if isinstance(spec.model, HuggingFaceModel) and spec.model.args.path is not None:
        return digest_folder(Path(spec.model.args.path))
    return digest_modules(Path(spec.code.working_dir)) if spec.uses_own_code else ""


def model_summary(spec: JobSpec, info: DatasetInfo, code: str, storage: Storage) -> ModelSummary:
    if isinstance(spec.model, ForeignModel):
        return inspect_factory(
            spec.model,
            info.signature,
            working_dir=Path(spec.code.working_dir).absolute(),
            code=code,
            cache=storage.root / "inspected",
        )
    return summarize(spec.model, info.signature)


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
    searched_training = "train" in phases or "joint" in phases
    if searched_training:
        stages.append(known("search", {"dataset": fingerprint}, search_config(spec, phases[0])))
        stages.append(depends("train", "the search"))
    else:
        stages.append(known("train", {"dataset": fingerprint}, train_config(spec)))
    if "compress" in phases:
        stages.append(depends("search/compress", "the training"))
    if not spec.prunes:
        stages.append(StagePlan(name="prune", action="skip", reason="the spec has no compress.prune"))
    elif phases:
        stages.append(depends("prune", "the search"))
    else:
        inputs = {"dataset": fingerprint, "parent": hashes["train"]}
        stages.append(known("prune", inputs, prune_config(spec)))
    if spec.compress.low_rank is None:
        stages.append(StagePlan(name="low_rank", action="skip", reason="the spec has no compress.low_rank"))
    elif phases:
        stages.append(depends("low_rank", "the search"))
    else:
        inputs = {"dataset": fingerprint, "parent": hashes["prune" if spec.prunes else "train"]}
        stages.append(known("low_rank", inputs, low_rank_config(spec)))
    stages.append(StagePlan(name="export", action="run", reason="for each model that the stages before give"))
    if spec.compress.quantize:
        schemes = ", ".join(each.scheme for each in planned_schemes(spec))
        stages.append(StagePlan(name="quantize", action="run", reason=f"{schemes} of each exported model"))
    else:
        stages.append(StagePlan(name="quantize", action="skip", reason="the spec has no compress.quantize"))
    if not spec.packs:
        stages.append(StagePlan(name="pack", action="skip", reason="the spec has no compress.pack"))
    elif phases:
        stages += [depends("share", "the search"), depends("pack", "the search")]
    else:
        stages.append(known("share", {"dataset": fingerprint, "parent": hashes["train"]}, pack_config(spec)))
        stages.append(StagePlan(name="pack", action="run", reason="of the model that share gives, exported"))
    stages.append(StagePlan(name="measure", action="run", reason="validation split, through the exported files"))
    stages.append(StagePlan(name="test", action="run", reason="the dense and the selected artifact alone"))
    return stages
