"""ParallelLayout: who holds what. Nothing else multiplies degrees.

Words: an *axis* is one of data, tensor and pipeline; its *degree* is how many ways it divides; a *coordinate* is a
worker's place on each axis; a *rank* is the same place as one number, pipeline-major, then data, then tensor, so
that tensor peers are neighbours (within a node) and pipeline stages lie furthest apart.
"""

from dataclasses import dataclass

from jobs.errors import SpecError


@dataclass(frozen=True)
class Coordinate:
    data: int
    tensor: int
    pipeline: int


@dataclass(frozen=True)
class ParallelLayout:
    """Degrees of parallelism and the ZeRO stage (Rajbhandari et al. 2020).

    >>> ParallelLayout(data=2).size
    2
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero_stage: int = 0

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


def share_batch(global_batch: int, data: int, micro_batch: int | None, norm_group: int | None = None) -> BatchShare:
    """Divides the global batch over `data` ranks and micro-batches; refuses what does not divide.

    `norm_group` is the number of samples that batch normalization looks at together, if the model has any.
    """
    per_rank, rest = divmod(global_batch, data)
    if rest or not per_rank:
        raise SpecError.at(
            "train.batch_size",
            f"a global batch of {global_batch} does not divide over {data} data-parallel workers",
            global_batch,
            f"a multiple of {data}",
        )
    micro = micro_batch or per_rank
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
