"""Which layout a job gets: every legal one with its memory and its communication, and the choice among them. Pure."""

from dataclasses import dataclass
from math import prod

from jobs.layout import BatchShare, ParallelLayout, share_batch
from jobs.records import DatasetInfo, LayoutAlternative, MemoryEstimate, ModelSummary
from jobs.spec import JobSpec
from jobs.spec.train import Layout
from jobs.train.memory import communication_bytes, estimate

PROCESS_BYTES = 500 << 20
"""What a worker holds before any model: the interpreter, torch and DeepSpeed (measured: 0.45 GB)."""
MEMORY_SHARE = 0.8
"""Of a machine's memory, what the workers may take together."""


@dataclass(frozen=True)
class LayoutChoice:
    """The layout that was chosen, and what it was chosen from."""

    layout: ParallelLayout
    share: BatchShare
    memory: MemoryEstimate
    alternatives: tuple[LayoutAlternative, ...]
    warning: str


def choose_layout(spec: JobSpec, model: ModelSummary, info: DatasetInfo, memory_bytes: int) -> LayoutChoice:
    """The layout asked for, or under `auto` the one with the least communication whose memory fits.

    Args:
        memory_bytes: of the machine that all workers share.
    """
    asked = spec.layout if isinstance(spec.layout, Layout) else None
    share = share_batch(spec.train.batch_size, spec.num_workers, asked.micro_batch if asked else None, model.norm_group)
    available = int(memory_bytes * MEMORY_SHARE) // spec.num_workers - PROCESS_BYTES
    lowest = 1 if spec.train.precision == "bf16" else 0  # DeepSpeed keeps the fp32 weights in ZeRO's optimizer
    highest = 3 if spec.num_workers > 1 else lowest  # with one worker there is nothing to divide
    stages = [asked.zero_stage] if asked else list(range(lowest, highest + 1))
    layouts = [ParallelLayout(data=spec.num_workers, zero_stage=stage) for stage in stages]
    needs = [
        estimate(
            model,
            layout,
            share,
            precision=spec.train.precision,
            optimizer=spec.train.optimizer.name,
            sample_values=prod(info.input_shape),
        )
        for layout in layouts
    ]
    # By rising stage: memory falls, communication does not.
    fitting = [index for index, need in enumerate(needs) if need.total <= available]
    chosen = fitting[0] if fitting else len(layouts) - 1
    warning = ""
    if not fitting:
        warning = (
            f"a worker needs about {needs[chosen].total / 1e9:.1f} GB and this machine has "
            f"{max(0, available) / 1e9:.1f} GB for each; a smaller layout.micro_batch or more workers may help"
        )
    alternatives = tuple(
        LayoutAlternative(
            data=layout.data,
            zero_stage=layout.zero_stage,
            memory_bytes=need.total,
            communication_bytes=communication_bytes(model, layout, precision=spec.train.precision),
            fits=need.total <= available,
            reason=_reason(index, chosen, fits=need.total <= available, asked=asked is not None),
        )
        for index, (layout, need) in enumerate(zip(layouts, needs, strict=True))
    )
    return LayoutChoice(layouts[chosen], share, needs[chosen], alternatives, warning)


def _reason(index: int, chosen: int, *, fits: bool, asked: bool) -> str:
    if index == chosen:
        if asked:
            return "chosen: asked for"
        return "chosen: the least communication that fits" if fits else "chosen: the least memory; nothing fits"
    return "more communication or work for memory that is not needed" if fits else "does not fit"
