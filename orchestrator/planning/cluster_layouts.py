"""The legal layouts and micro-batches of a job on a cluster, their memory and time, and the best of them. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from jobs.errors import SpecError
from jobs.layout import BatchShare, Offload, ParallelLayout
from jobs.records import DatasetInfo, MemoryEstimate
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile
from jobs.spec.train import Layout
from jobs.train.memory import estimate, recomputed_activations, sample_bytes
from orchestrator.planning.costs import Machine, StepCost, step_cost
from orchestrator.planning.layouts import Variant, available_bytes, legal_layouts

MAX_MICRO_BATCHES = 64
"""Micro-batches tried for a layout: the smallest divisors of a worker's share, and all of it."""


@dataclass(frozen=True)
class Candidate:
    """A layout with a micro-batch, its memory and its cost."""

    layout: ParallelLayout
    share: BatchShare
    memory: MemoryEstimate
    memory_bytes: int
    recomputed_bytes: int
    cost: StepCost
    fits: bool

    @property
    def preference(self) -> tuple[float, ...]:
        """Smaller is better: the shorter step; of equal ones what divides least, in the fewest micro-batches."""
        layout = self.layout
        step = float(f"{self.cost.step_s:.9g}")
        divided = (layout.offload != "none", layout.zero_stage, layout.pipeline, layout.tensor)
        return (step, *divided, self.share.accumulation)


@dataclass(frozen=True)
class Room:
    """What a cluster has for the tensors of a worker.

    Attributes:
        device: bytes of its device.
        host: bytes of the memory beside it; 0 if nothing is known of that, None if it is the same memory.
    """

    device: int
    host: int | None

    @classmethod
    def of(cls, profile: ClusterProfile, spec: JobSpec) -> "Room":
        devices = 1 if profile.accelerated else spec.resources.cpus_per_worker
        device = available_bytes(int(profile.memory_gb * 1e9 * devices), 1)
        if not profile.accelerated:
            return cls(device, None)
        per_node = min(profile.workers_per_node(spec.resources.cpus_per_worker), spec.num_workers)
        return cls(device, available_bytes(int(profile.host.memory_gb * 1e9), per_node) if profile.host else 0)

    def holds(self, need: MemoryEstimate) -> bool:
        if self.host is None:
            return need.total <= self.device
        return need.on_device <= self.device and need.offloaded <= max(0, self.host)


def candidates(
    own: Variant, info: DatasetInfo, machine: Machine, room: Room, variants: Sequence[Variant] = ()
) -> list[Candidate]:
    """Every legal layout with every micro-batch, or the one that the spec asks for. Raises SpecError if none is legal.

    Args:
        variants: what else the layout should serve.
    """
    spec = own.spec
    if isinstance(spec.layout, Layout):
        layout = spec.layout.parallel
        if layout.offload != "none" and room.host == 0:
            what = "the profile says nothing of the hosts that the layout offloads to"
            raise SpecError.at("cluster.host", what, None, "memory_gb, link_gb_per_s, memory_gb_per_s")
        return [_candidate(own, info, machine, room, layout, own.share(layout))]
    places: tuple[Offload, ...] = ("none", "cpu") if room.host else ("none",)

    def legal(serving: Sequence[Variant]) -> list[ParallelLayout]:
        return [
            layout
            for place in places
            for layout in legal_layouts(serving, workers_per_node=spec.num_workers, offload=place)
        ]

    layouts = legal((own, *variants)) or legal((own,))
    if not layouts:
        own.share(spec.data_parallel)  # says why
    return [
        _candidate(own, info, machine, room, layout, share)
        for layout in layouts
        for share in _shares(own, layout, variants)
    ]


def choose(found: Sequence[Candidate], *, asked: bool) -> tuple[Candidate, str]:
    """The best of those that fit, or what needs least if none does; and why."""
    fitting = [each for each in found if each.fits]
    if asked:
        return found[0], "chosen: asked for"
    if fitting:
        return min(fitting, key=lambda each: each.preference), "chosen: the shortest step of those that fit"
    least = min(found, key=lambda each: (each.memory_bytes, each.preference))
    return least, "chosen: the least memory; nothing fits"


def best_of_each_layout(found: Sequence[Candidate], chosen: Candidate) -> list[Candidate]:
    """For each layout its best micro-batch, best first: those that fit, then the others by their memory.

    Offload that only costs time, since the same layout fits without, is left out.
    """

    def order(each: Candidate) -> tuple[Any, ...]:
        return (each is not chosen, not each.fits, each.preference if each.fits else (each.memory_bytes,))

    best: dict[ParallelLayout, Candidate] = {}
    for each in sorted(found, key=order):
        best.setdefault(each.layout, each)

    def gains(each: Candidate) -> bool:
        without = best.get(replace(each.layout, offload="none"), each)
        return without is each or each is chosen or (each.fits, without.cost.step_s) > (without.fits, each.cost.step_s)

    return [each for each in best.values() if gains(each)]


def _shares(own: Variant, layout: ParallelLayout, variants: Sequence[Variant]) -> Iterator[BatchShare]:
    """The ways to divide the batch that are legal, for whatever the search may try as well."""
    default = own.share(layout)
    per_rank = default.global_batch // layout.data
    low = [size for size in range(1, isqrt(per_rank) + 1) if per_rank % size == 0]
    sizes = sorted({*low, *(per_rank // size for size in low)})
    for micro in sorted({*sizes[: MAX_MICRO_BATCHES - 1], default.micro, per_rank}):
        try:
            for variant in variants:
                variant.share(layout, micro)
            yield own.share(layout, micro)
        except SpecError:
            continue  # it splits a normalization group, or does not divide another batch


def _candidate(
    own: Variant, info: DatasetInfo, machine: Machine, room: Room, layout: ParallelLayout, share: BatchShare
) -> Candidate:
    train, model = own.spec.train, own.model
    options: dict[str, Any] = {"precision": train.precision, "optimizer": train.optimizer.name}
    need = estimate(model, layout, share, sample_bytes=sample_bytes(info), **options)
    return Candidate(
        layout,
        share,
        need,
        memory_bytes=need.total if room.host is None else need.on_device,
        recomputed_bytes=recomputed_activations(model, layout, share, precision=train.precision),
        cost=step_cost(model, layout, share, machine, **options),
        fits=room.holds(need),
    )


def why_not(found: Candidate, chosen: Candidate) -> str:
    """Why a candidate was not chosen."""
    if chosen.fits and not found.fits:
        return "does not fit"
    if not chosen.fits:
        return "needs more memory"
    parts = {
        "computes more": found.cost.compute_s - chosen.cost.compute_s,
        "tensor peers send more": found.cost.tensor_s - chosen.cost.tensor_s,
        "data peers send more": found.cost.data_s - chosen.cost.data_s,
        "stages send more": found.cost.pipeline_s - chosen.cost.pipeline_s,
        "stages wait more": found.cost.bubble_s - chosen.cost.bubble_s,
        "the host takes more": found.cost.offload_s - chosen.cost.offload_s,
    }
    worst = max(parts, key=lambda name: parts[name])
    return worst if parts[worst] > 0 else "no better, and divides more"
