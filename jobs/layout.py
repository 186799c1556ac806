"""ParallelLayout: who holds what. Nothing else multiplies degrees.

Words: an *axis* is one of data, tensor and pipeline; its *degree* is how many ways it divides; a *coordinate* is a
worker's place on each axis; a *rank* is the same place as one number, pipeline-major, then data, then tensor, so
that tensor peers are neighbours (within a node) and pipeline stages lie furthest apart.
"""

import ctypes.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from jobs.errors import Problem, SpecError
from jobs.records import BlockSummary, ModelSummary

Offload = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True)
class Coordinate:
    data: int
    tensor: int
    pipeline: int


@dataclass(frozen=True)
class ParallelLayout:
    """Degrees of parallelism, the ZeRO stage (Rajbhandari et al. 2020), and what is kept outside of the device.

    >>> ParallelLayout(data=2).size
    2
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero_stage: int = 0
    offload: Offload = "none"
    """Where the optimizer states live (at stage 3 the parameters too), if not on the device."""

    def __post_init__(self) -> None:
        for axis in ("data", "tensor", "pipeline"):
            if getattr(self, axis) < 1:
                raise ValueError(f"the degree of {axis} is {getattr(self, axis)}, and must be at least 1")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"ZeRO has stages 0 to 3, not {self.zero_stage}")

    @property
    def size(self) -> int:
        """Number of workers."""
        return self.data * self.tensor * self.pipeline

    def coordinate(self, rank: int) -> Coordinate:
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is not in a layout of {self.size} workers")
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return Coordinate(data=data, tensor=tensor, pipeline=pipeline)

    def rank(self, coordinate: Coordinate) -> int:
        return (coordinate.pipeline * self.data + coordinate.data) * self.tensor + coordinate.tensor


@dataclass(frozen=True)
class BatchShare:
    """How the global batch is divided: global = micro × accumulation × data ranks, always."""

    global_batch: int
    micro: int
    accumulation: int
    data: int


def share_batch(
    global_batch: int, data: int, micro_batch: int | None, norm_group: int | None = None, pipeline: int = 1
) -> BatchShare:
    """Divides the global batch over `data` ranks and micro-batches; refuses what does not divide.

    Without a `micro_batch`, a rank takes its share at once; in a pipeline, in the largest micro-batches that give each
    stage one to work on at the same time, if the share can be divided so.

    Args:
        norm_group: number of samples that batch normalization looks at together, if the model has any.
        pipeline: number of stages.
    """
    per_rank, rest = divmod(global_batch, data)
    if rest or not per_rank:
        raise SpecError.at(
            "train.batch_size",
            f"a global batch of {global_batch} does not divide over {data} data-parallel workers",
            global_batch,
            f"a multiple of {data}",
        )
    micro = micro_batch or _default_micro_batch(per_rank, norm_group or 1, pipeline)
    accumulation, rest = divmod(per_rank, micro)
    if rest:
        raise SpecError.at(
            "layout.micro_batch",
            f"a worker's share of {per_rank} samples does not divide into micro-batches of {micro}",
            micro,
            f"a divisor of {per_rank}",
        )
    if norm_group is not None and micro % norm_group:
        divisors = [str(group) for group in range(2, min(micro, 4096) + 1) if micro % group == 0]
        raise SpecError.at(
            "model.args.norm_group",
            f"batch normalization looks at {norm_group} samples together, and a worker's micro-batch of {micro} is no "
            "multiple of that",
            norm_group,
            ", ".join(divisors) or "a larger micro-batch",
        )
    return BatchShare(global_batch=global_batch, micro=micro, accumulation=accumulation, data=data)


def _default_micro_batch(per_rank: int, norm_group: int, pipeline: int) -> int:
    for parts in range(pipeline, per_rank // norm_group + 1):
        micro, rest = divmod(per_rank, parts)
        if not rest and micro % norm_group == 0:
            return micro
    return per_rank


def stage_bounds(costs: Sequence[int], stages: int) -> tuple[range, ...]:
    """Which consecutive blocks each stage of a pipeline gets, so that the costliest stage costs as little as can be.

    No stage is empty. Where several partitions are equally good, the later stages get more: the early ones hold the
    activations of more micro-batches.

    >>> stage_bounds([4, 1, 1, 1, 1], 2)
    (range(0, 1), range(1, 5))
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{len(costs)} blocks can't be divided over {stages} stages")
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _stages_needed(costs, middle) <= stages else (middle + 1, high)
    bounds: list[range] = []
    end = len(costs)
    for stages_before in range(stages - 1, -1, -1):
        start, cost = end - 1, costs[end - 1]
        # So much suffices, found above, for the first stage to take all that is left.
        while start > stages_before and cost + costs[start - 1] <= low:
            start -= 1
            cost += costs[start]
        bounds.append(range(start, end))
        end = start
    return tuple(reversed(bounds))


def _stages_needed(costs: Sequence[int], most: int) -> int:
    """How many stages hold the blocks if none may cost more than `most`."""
    stages, cost = 1, 0
    for block in reversed(costs):
        stages, cost = (stages, cost + block) if cost + block <= most else (stages + 1, block)
    return stages


def stages_of(model: ModelSummary, pipeline: int) -> tuple[range, ...]:
    """The blocks of each stage, balanced by their multiply-accumulates."""
    return stage_bounds(block_costs(model), pipeline)


def block_costs(model: ModelSummary) -> tuple[int, ...]:
    """What each block costs to compute: at least something, whatever its multiply-accumulates."""
    return tuple(max(1, block.macs) for block in model.blocks)


# Which layouts are legal

MAX_TENSOR = 64
"""The largest tensor degree of a spec."""
INCLUDE_FOLDERS = ("/usr/include", "/usr/local/include")
"""Where a C compiler looks for headers, beside what its environment names."""


@dataclass(frozen=True)
class Setting:
    """What decides, beside a layout's own numbers, whether it is legal. None: not known (yet), and so no reason.

    Attributes:
        accelerator: whether each worker has one.
        blocks: of the model; a stage of a pipeline has at least one, and parameters.
        tensor_width: what tensor degrees must divide.
        no_tensor: why the model can't be divided by tensor parallelism; empty if it can.
        no_pipeline: why it can't be a pipeline; empty if it can.
        async_io: whether DeepSpeed's extension for nvme can be built; see `can_build_async_io`.
    """

    precision: str = "fp32"
    accelerator: bool = False
    workers: int | None = None
    blocks: tuple[BlockSummary, ...] | None = None
    tensor_width: int | None = None
    no_tensor: str = ""
    no_pipeline: str = ""
    async_io: bool | None = None

    def of(self, model: ModelSummary) -> Self:
        """The same setting, for a model."""
        capabilities = {name: getattr(model, name) for name in ("tensor_width", "no_tensor", "no_pipeline")}
        return replace(self, blocks=model.blocks, **capabilities)


Words = Callable[[ParallelLayout, Setting], str]


@dataclass(frozen=True)
class Rule:
    """A kind of layout that is refused.

    Attributes:
        name: what is refused, in a few words; docs/layouts.md lists them.
        path: where in the spec.
        applies: whether a layout is of that kind.
        reason: why it is refused.
        allowed: what may stand there instead.
    """

    name: str
    path: str
    applies: Callable[[ParallelLayout, Setting], bool]
    reason: Words
    allowed: Words


def _bare(layout: ParallelLayout, setting: Setting) -> list[str]:
    """The blocks of the first stage without parameters."""
    blocks = setting.blocks or ()
    if len(blocks) < layout.pipeline:
        return []
    stages = stage_bounds([max(1, block.macs) for block in blocks], layout.pipeline)
    bare = (stage for stage in stages if not any(blocks[index].params for index in stage))
    return [blocks[index].name for index in next(bare, ())]


RULES: tuple[Rule, ...] = (
    Rule(
        "degrees whose product is not the number of workers",
        "layout.data",
        lambda layout, setting: setting.workers not in (None, layout.size),
        lambda layout, setting: (
            f"layout.data × tensor × pipeline = {layout.data} × {layout.tensor} × {layout.pipeline} = {layout.size}, "
            f"but resources.workers = {setting.workers}"
        ),
        lambda layout, setting: _data_for(layout, setting.workers or 1),
    ),
    Rule(
        "fp16 without accelerators",
        "train.precision",
        lambda layout, setting: setting.precision == "fp16" and not setting.accelerator,
        lambda layout, setting: (
            "processors have no fp16 arithmetic that DeepSpeed supports; bf16 works (resources.gpus_per_worker is 0)"
        ),
        lambda layout, setting: "fp32, bf16",
    ),
    Rule(
        "bf16 or fp16 with ZeRO 0",
        "layout.zero_stage",
        lambda layout, setting: setting.precision != "fp32" and layout.zero_stage == 0,
        lambda layout, setting: f"{setting.precision} keeps its fp32 copy of the weights in ZeRO's optimizer",
        lambda layout, setting: "1" if layout.pipeline > 1 else "1, 2, 3",
    ),
    Rule(
        "a pipeline with ZeRO 2 or 3",
        "layout.zero_stage",
        lambda layout, setting: layout.pipeline > 1 and layout.zero_stage > 1,
        lambda layout, setting: (
            f"a pipeline accumulates gradients over its micro-batches, and ZeRO {layout.zero_stage} would divide them "
            "after each one (DeepSpeed refuses it)"
        ),
        lambda layout, setting: "0, 1" if setting.precision == "fp32" else "1",
    ),
    Rule(
        "tensor parallelism for a model that can't be divided",
        "layout.tensor",
        lambda layout, setting: layout.tensor > 1 and bool(setting.no_tensor),
        lambda layout, setting: f"no tensor parallelism for this model: {setting.no_tensor}",
        lambda layout, setting: "1",
    ),
    Rule(
        "a tensor degree that does not divide the model's widths",
        "layout.tensor",
        lambda layout, setting: setting.tensor_width is not None and setting.tensor_width % layout.tensor > 0,
        lambda layout, setting: (
            f"tensor peers divide widths whose greatest common divisor is {setting.tensor_width} (layers, heads, "
            "groups, rows of tables)"
        ),
        lambda layout, setting: ", ".join(map(str, _divisors(setting.tensor_width or 1, MAX_TENSOR))),
    ),
    Rule(
        "a pipeline for a model without blocks",
        "layout.pipeline",
        lambda layout, setting: layout.pipeline > 1 and bool(setting.no_pipeline),
        lambda layout, setting: f"no pipeline for this model: {setting.no_pipeline}",
        lambda layout, setting: "1",
    ),
    Rule(
        "more stages than blocks",
        "layout.pipeline",
        lambda layout, setting: setting.blocks is not None and layout.pipeline > max(1, len(setting.blocks)),
        lambda layout, setting: f"a stage has at least one block, and the model has {len(setting.blocks or ())}",
        lambda layout, setting: f"1 to {len(setting.blocks or ())}",
    ),
    Rule(
        "a stage without parameters",
        "layout.pipeline",
        lambda layout, setting: layout.pipeline > 1 and bool(_bare(layout, setting)),
        lambda layout, setting: (
            f"a stage would hold nothing to train: {', '.join(_bare(layout, setting))}; join what has no parameters to "
            "a block that has some"
        ),
        lambda layout, setting: "fewer stages",
    ),
    Rule(
        "offload with ZeRO 0",
        "layout.offload",
        lambda layout, setting: layout.offload != "none" and layout.zero_stage == 0,
        lambda layout, setting: "offload is a part of ZeRO's optimizer, and layout.zero_stage is 0",
        lambda layout, setting: "none, or a layout.zero_stage of 1 to 3",
    ),
    Rule(
        "nvme below ZeRO 3",
        "layout.offload",
        lambda layout, setting: layout.offload == "nvme" and layout.zero_stage < 3,
        lambda layout, setting: (
            f"DeepSpeed swaps to a disk at ZeRO 3 alone; at ZeRO {layout.zero_stage} all would stay in memory"
        ),
        lambda layout, setting: "none, cpu, or a layout.zero_stage of 3",
    ),
    Rule(
        "nvme without libaio",
        "layout.offload",
        lambda layout, setting: layout.offload == "nvme" and setting.async_io is False,
        lambda layout, setting: (
            "DeepSpeed compiles its async_io extension for nvme, and libaio or its headers are not here: "
            "apt-get install libaio-dev"
        ),
        lambda layout, setting: "none, cpu",
    ),
)
"""The legality table: the first rule that applies is the one that refuses."""


def refusal(layout: ParallelLayout, setting: Setting) -> Problem | None:
    """Why a layout is not legal, as a problem at a path of the spec; None if it is."""
    for rule in RULES:
        if rule.applies(layout, setting):
            section, key = rule.path.split(".")
            value = getattr(layout if section == "layout" else setting, key)
            return Problem(rule.path, rule.reason(layout, setting), value, rule.allowed(layout, setting))
    return None


def can_build_async_io() -> bool:
    """Whether libaio and its headers are on this machine: all that DeepSpeed's async_io lacks on a usual one."""
    named = (os.environ.get(name, "").split(os.pathsep) for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"))
    folders = [folder for paths in named for folder in paths if folder]
    headers = any((Path(folder) / "libaio.h").exists() for folder in (*folders, *INCLUDE_FOLDERS))
    return headers and ctypes.util.find_library("aio") is not None


def _data_for(layout: ParallelLayout, workers: int) -> str:
    data, rest = divmod(workers, layout.tensor * layout.pipeline)
    if data and not rest:
        return f"layout.data = {data}"
    return f"tensor × pipeline that divides {workers}: {', '.join(map(str, _divisors(workers, workers)))}"


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
