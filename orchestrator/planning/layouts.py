"""Which layout a job gets: the legal ones with their memory, communication and work, and the choice. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice

from jobs.errors import SpecError
from jobs.layout import (
    BatchShare,
    Offload,
    ParallelLayout,
    can_build_async_io,
    refusal,
    share_batch,
    stages_of,
)
from jobs.records import DatasetInfo, JobPlan, LayoutAlternative, MemoryEstimate, ModelSummary
from jobs.spec import JobSpec
from jobs.spec.train import Layout
from jobs.train.memory import communication_bytes, estimate, sample_bytes

PROCESS_BYTES = 500 << 20
"""What a worker holds before any model: the interpreter, torch and DeepSpeed (measured: 0.45 GB)."""
MEMORY_SHARE = 0.8
"""Of a machine's memory, what the workers may take together."""
WORK_STEP = 0.1
"""Layouts whose work differs by less count as equally fast: then what they send decides."""
SHOWN = 12
"""Alternatives in a plan."""


@dataclass(frozen=True)
class LayoutChoice:
    """The layout that was chosen, and what it was chosen from, best first."""

    layout: ParallelLayout
    share: BatchShare
    memory: MemoryEstimate
    alternatives: tuple[LayoutAlternative, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A spec that the chosen layout must serve: the job's own, or one that its search may try.

    Attributes:
        here: whether it is to run on this machine, and not on one of which only a profile is known.
    """

    spec: JobSpec
    model: ModelSummary
    here: bool = True

    def share(self, layout: ParallelLayout, micro_batch: int | None = None) -> BatchShare:
        """Raises SpecError if the layout is not legal for it, or its batch does not divide.

        Args:
            micro_batch: default: the spec's own.
        """
        asked = self.spec.layout if isinstance(self.spec.layout, Layout) else None
        setting = self.spec.layout_setting.of(self.model)
        if layout.offload == "nvme" and self.here:
            setting = replace(setting, async_io=can_build_async_io())
        if problem := refusal(layout, setting):
            raise SpecError([problem])
        micro_batch = micro_batch or (asked.micro_batch if asked else None)
        batch = self.spec.train.batch_size
        return share_batch(batch, layout.data, micro_batch, self.model.norm_group, layout.pipeline)


@dataclass(frozen=True)
class _Candidate:
    layout: ParallelLayout
    share: BatchShare
    memory: MemoryEstimate
    memory_bytes: int
    communication_bytes: int
    work: float
    fits: bool

    @property
    def work_steps(self) -> int:
        return int((self.work - 1.0) / WORK_STEP + 1e-9)

    @property
    def preference(self) -> tuple[int, ...]:
        """Smaller is better."""
        layout = self.layout
        return (self.work_steps, self.communication_bytes, layout.zero_stage, layout.tensor, layout.pipeline)


def choose_layout(
    own: Variant,
    info: DatasetInfo,
    memory_bytes: int,
    *,
    variants: Sequence[Variant] = (),
    workers_per_node: int | None = None,
) -> LayoutChoice:
    """The layout asked for, or under `auto` the best that fits: the least work, then the least communication.

    Args:
        memory_bytes: of the machine that all workers share.
        variants: what else the layout should serve. Whoever asks for a layout, or for variants that none serves, must
            check them.
        workers_per_node: tensor peers lie within a node; default: all workers do.

    Raises SpecError if what was asked for is not legal, or if under `auto` nothing is.
    """
    spec = own.spec
    available = available_bytes(memory_bytes, spec.num_workers)
    if isinstance(spec.layout, Layout):
        found = [_candidate(own, info, spec.layout.parallel, available)]
        why = "chosen: asked for"
    else:
        found = _candidates(own, info, variants, workers_per_node or spec.num_workers, available)
        why = "chosen: of those that fit, the least work, then the least sent"
        if not found[0].fits and available > 0:
            found.sort(key=lambda each: (each.memory_bytes, each.preference))
            why = "chosen: the least memory; nothing fits"
        elif not found[0].fits:
            why = "chosen: the least work, then the least sent; the machine has no room for so many workers at all"
    chosen = found[0]
    return LayoutChoice(
        chosen.layout,
        chosen.share,
        chosen.memory,
        alternatives=tuple(_alternative(each, chosen, why) for each in found[:SHOWN]),
        warnings=tuple(_warnings(chosen, available, spec)),
    )


def planned_layouts(plan: JobPlan) -> tuple[ParallelLayout, ...]:
    """A plan's layout for each number of workers that the job may have, most first."""
    return tuple(ParallelLayout(**layout) for layout in (plan.layout, *plan.smaller_layouts))


def available_bytes(memory_bytes: int, workers: int) -> int:
    """What each worker has for its tensors, of a machine that all share."""
    return int(memory_bytes * MEMORY_SHARE) // workers - PROCESS_BYTES


def legal_layouts(
    variants: Sequence[Variant], *, workers_per_node: int, offload: Offload = "none"
) -> Iterator[ParallelLayout]:
    """Every layout of all the workers that is legal for these specs, and divides their batches.

    Where every worker has a part of the model of its own, ZeRO has nothing to divide: without offload it stays as low
    as can be.
    """
    workers = variants[0].spec.num_workers
    for pipeline in _divisors(workers):
        for tensor in _divisors(workers // pipeline):
            if workers_per_node % tensor:
                continue
            data = workers // pipeline // tensor
            stages = (ParallelLayout(data, tensor, pipeline, stage, offload) for stage in range(4))
            legal = (layout for layout in stages if all(_serves(layout, variant) for variant in variants))
            yield from islice(legal, 1) if data == 1 and offload == "none" else legal


def relative_work(model: ModelSummary, layout: ParallelLayout, share: BatchShare) -> float:
    """Time of a step without communication, relative to all multiply-accumulates divided evenly over the workers.

    More than 1 for stages that cost unlike, for those that wait while a pipeline fills and empties (of m + p − 1 turns
    p − 1: Narayanan et al. 2021, section 2.2), and for layers that every tensor peer computes.
    """
    if model.macs == 0 or layout.size == layout.data:
        return 1.0
    turns = share.accumulation + layout.pipeline - 1
    slowest = max(stage_macs(model, layout.tensor, layout.pipeline))
    return turns / share.accumulation * slowest * layout.tensor * layout.pipeline / model.macs


@lru_cache(maxsize=256)
def stage_macs(model: ModelSummary, tensor: int, pipeline: int) -> tuple[float, ...]:
    """Multiply-accumulates for a sample, of a worker of each stage: tensor peers compute alike what is not divided."""
    stages = stages_of(model, pipeline) if pipeline > 1 else (range(len(model.blocks)),)
    return tuple(
        sum(block.macs - block.split_macs + block.split_macs / tensor for block in model.blocks[part.start : part.stop])
        for part in stages
    )


def bubble(pipeline: int, accumulation: int) -> float:
    """Share of a step in which a stage of a pipeline waits: (p − 1) / (m + p − 1)."""
    return (pipeline - 1) / (accumulation + pipeline - 1)


def _candidates(
    own: Variant, info: DatasetInfo, variants: Sequence[Variant], workers_per_node: int, available: int
) -> list[_Candidate]:
    """What `auto` may choose from, best first. Raises SpecError, the data-parallel layout's, if there is nothing."""

    def measured(offload: Offload) -> list[_Candidate]:
        legal = list(legal_layouts((own, *variants), workers_per_node=workers_per_node, offload=offload))
        legal = legal or list(legal_layouts((own,), workers_per_node=workers_per_node, offload=offload))
        return [_candidate(own, info, layout, available) for layout in legal]

    found = measured("none")
    if not found:
        own.share(own.spec.data_parallel)
    if own.spec.layout_setting.accelerator and not any(each.fits for each in found):
        found += measured("cpu")
    return sorted(found, key=lambda each: (not each.fits, each.preference))


def _candidate(own: Variant, info: DatasetInfo, layout: ParallelLayout, available: int) -> _Candidate:
    train, model = own.spec.train, own.model
    share = own.share(layout)
    need = estimate(
        model,
        layout,
        share,
        precision=train.precision,
        optimizer=train.optimizer.name,
        sample_bytes=sample_bytes(info),
    )
    # Without an accelerator, what is offloaded stays in the same memory.
    held = need.on_device if own.spec.layout_setting.accelerator else need.total
    return _Candidate(
        layout,
        share,
        need,
        memory_bytes=held,
        communication_bytes=communication_bytes(model, layout, share, precision=train.precision),
        work=relative_work(model, layout, share),
        fits=held <= available,
    )


def _serves(layout: ParallelLayout, variant: Variant) -> bool:
    try:
        variant.share(layout)
    except SpecError:
        return False
    return True


def _alternative(found: _Candidate, chosen: _Candidate, why: str) -> LayoutAlternative:
    return LayoutAlternative(
        **asdict(found.layout),
        memory_bytes=found.memory_bytes,
        communication_bytes=found.communication_bytes,
        relative_work=round(found.work, 4),
        fits=found.fits,
        reason=why if found is chosen else _reason(found, chosen),
    )


def _reason(found: _Candidate, chosen: _Candidate) -> str:
    """Why a candidate was not chosen."""
    if chosen.fits and not found.fits:
        return "does not fit"
    if not chosen.fits and found.memory_bytes > chosen.memory_bytes:
        return "needs more memory"
    if found.work_steps > chosen.work_steps:
        return "more work"
    if found.communication_bytes > chosen.communication_bytes:
        return "sends more"
    if found.layout.zero_stage > chosen.layout.zero_stage:
        return "divides memory that is not needed"
    return "no better, and divides more"


def _warnings(chosen: _Candidate, available: int, spec: JobSpec) -> Iterator[str]:
    if not chosen.fits:
        yield (
            f"a worker needs about {chosen.memory_bytes / 1e9:.1f} GB and this machine has "
            f"{max(0, available) / 1e9:.1f} GB for each; a smaller layout.micro_batch or more workers may help"
        )
    if chosen.layout.offload == "cpu" and not spec.layout_setting.accelerator:
        yield (
            "layout.offload: cpu saves nothing here: without accelerators the device's memory is the machine's own, "
            "and offload makes copies"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
