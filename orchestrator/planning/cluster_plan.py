"""JobSpec + profile of a cluster -> ClusterPlan: the legal layout and micro-batch with the shortest step. Pure.

The cluster need not be here, nor anything like it. What is chosen is legal for the engine by the same rules as any
layout (`jobs.layout.RULES`), and `section` of the plan is what to write into the spec to get it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs import data
from jobs.records import DatasetInfo, Demand, MemoryEstimate, ModelSummary
from jobs.section import Record
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile, check_resources, on_cluster
from jobs.spec.load import with_assignments
from jobs.spec.read import read_document
from jobs.spec.train import Layout
from jobs.train.config import planned_config
from orchestrator.planning.cluster_layouts import Candidate, Room, best_of_each_layout, candidates, choose, why_not
from orchestrator.planning.costs import Machine
from orchestrator.planning.formulas import FORMULAS
from orchestrator.planning.layouts import MEMORY_SHARE, PROCESS_BYTES, Variant
from orchestrator.planning.plan import (
    check_fit,
    check_searched,
    code_digest,
    count_steps,
    model_summary,
    searched_variants,
)
from orchestrator.runs import Storage

SHOWN = 12
"""Alternatives in a plan."""


class LayoutCost(Record):
    """A layout with a micro-batch, and what a step of it costs."""

    data: int
    tensor: int
    pipeline: int
    zero_stage: int
    offload: str
    micro_batch: int
    accumulation: int
    memory_bytes: int
    """On the device of the worker with the most, at the peak of a step."""
    states_bytes: int
    """Of these: parameters, gradients and optimizer states."""
    activations_bytes: int
    """Of these: what the forward pass keeps for the backward pass."""
    recomputed_bytes: int
    """What would be kept instead if blocks were computed again; this engine does not."""
    host_bytes: int
    """Of a worker, in the memory of its host."""
    within_bytes: int
    """That the worker with the most sends in a step, within its node."""
    between_bytes: int
    """Likewise, to other nodes."""
    compute_s: float
    tensor_s: float
    pipeline_s: float
    data_s: float
    bubble_s: float
    offload_s: float
    step_s: float
    utilization: float
    """Operations that the model needs, of what all workers could do in that time by their profile (MFU)."""
    fits: bool
    reason: str

    @property
    def communication_s(self) -> float:
        return self.tensor_s + self.pipeline_s + self.data_s


class ClusterPlan(Record):
    """What a job would be on a cluster; nothing was changed to make it."""

    cluster: dict[str, Any]
    spec: dict[str, Any]
    """Every default resolved, with the layout that was chosen."""
    section: dict[str, Any]
    """What of `layout` and `resources` to write into the spec."""
    dataset: DatasetInfo
    model: ModelSummary
    batch: dict[str, int]
    total_steps: int
    memory: MemoryEstimate
    chosen: LayoutCost
    alternatives: tuple[LayoutCost, ...]
    """Best first, the chosen one among them; for each layout its best micro-batch."""
    considered: int
    """Pairs of a legal layout and a micro-batch."""
    fitting: int
    """Of these."""
    available_bytes: int
    """That tensors may take of a device."""
    deepspeed: dict[str, Any]
    demand: Demand
    formulas: tuple[dict[str, str], ...]
    """quantity, formula, source."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def load_and_plan(path: Path, overrides: list[str], profile: Path, storage: Storage) -> ClusterPlan:
    """Plans the job of a spec file for the cluster of a profile file. Raises SpecError."""
    cluster = ClusterProfile.load(profile)
    document, notes = on_cluster(with_assignments(read_document(path), overrides), cluster)
    return plan_on_cluster(JobSpec.parse(document), cluster, storage, notes=notes)


def plan_on_cluster(
    spec: JobSpec, profile: ClusterProfile, storage: Storage, *, notes: Sequence[str] = ()
) -> ClusterPlan:
    """Plans a job for a cluster. Raises SpecError for what is known to be wrong, or more than the cluster has.

    Args:
        notes: what of the spec was taken from the profile; see `jobs.spec.cluster.on_cluster`.
    """
    check_resources(spec, profile)
    fewest, most = spec.worker_range
    if fewest < most:
        notes = (*notes, f"resources.workers is a range, [{fewest}, {most}]: planned for {most}")
        spec = spec.with_workers(most)
    machine = Machine.of(profile, spec)
    info = data.inspect(spec.data, spec.train.loss)
    check_fit(spec, info)
    model = model_summary(spec, info, code_digest(spec), storage)
    total_steps = count_steps(spec, info)
    searched = searched_variants(spec, info, model)
    room = Room.of(profile, spec)
    own = Variant(spec, model, here=False)
    found = candidates(own, info, machine, room, [Variant(e.variant.spec, e.variant.model, False) for e in searched])
    chosen, why = choose(found, asked=isinstance(spec.layout, Layout))
    check_searched(searched, chosen.layout, info)
    share, layout = chosen.share, chosen.layout
    section = _section(spec, chosen)
    best = best_of_each_layout(found, chosen)
    return ClusterPlan(
        cluster=profile.model_dump(mode="json", exclude_none=True),
        spec=spec.replace(section).resolved(),
        section=section,
        dataset=info,
        model=model,
        batch={"global": share.global_batch, "micro": share.micro, "accumulation": share.accumulation},
        total_steps=total_steps,
        memory=chosen.memory,
        chosen=_described(chosen, why),
        alternatives=tuple(_described(e, why if e is chosen else why_not(e, chosen)) for e in best[:SHOWN]),
        considered=len(found),
        fitting=sum(each.fits for each in found),
        available_bytes=max(0, room.device),
        deepspeed=planned_config(spec, share, layout),
        demand=Demand(
            workers=spec.num_workers,
            fewest_workers=spec.num_workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            memory_bytes_per_worker=(chosen.memory.offloaded if profile.accelerated else chosen.memory.total)
            + PROCESS_BYTES,
        ),
        formulas=FORMULAS,
        notes=(*notes, *_notes(profile, spec, model)),
        warnings=tuple(_warnings(chosen, room, model)),
    )


def _described(found: Candidate, reason: str) -> LayoutCost:
    layout, need, cost = found.layout, found.memory, found.cost
    return LayoutCost(
        data=layout.data,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        zero_stage=layout.zero_stage,
        offload=layout.offload,
        micro_batch=found.share.micro,
        accumulation=found.share.accumulation,
        memory_bytes=found.memory_bytes,
        states_bytes=need.parameters + need.gradients + need.optimizer_states,
        activations_bytes=need.activations,
        recomputed_bytes=found.recomputed_bytes,
        host_bytes=need.offloaded,
        within_bytes=cost.within_bytes,
        between_bytes=cost.between_bytes,
        compute_s=cost.compute_s,
        tensor_s=cost.tensor_s,
        pipeline_s=cost.pipeline_s,
        data_s=cost.data_s,
        bubble_s=cost.bubble_s,
        offload_s=cost.offload_s,
        step_s=cost.step_s,
        utilization=cost.utilization,
        fits=found.fits,
        reason=reason,
    )


def _section(spec: JobSpec, chosen: Candidate) -> dict[str, Any]:
    layout = chosen.layout
    asked = spec.layout if isinstance(spec.layout, Layout) else None
    return {
        "layout": {
            "data": layout.data,
            "tensor": layout.tensor,
            "pipeline": layout.pipeline,
            "zero_stage": layout.zero_stage,
            "offload": layout.offload,
            "micro_batch": chosen.share.micro,
        }
        | ({"nvme_path": asked.nvme_path} if asked and asked.nvme_path else {}),
        "resources.workers": spec.num_workers,
        "resources.gpus_per_worker": spec.resources.gpus_per_worker,
    }


def _notes(profile: ClusterProfile, spec: JobSpec, model: ModelSummary) -> Iterator[str]:
    if spec.num_workers < profile.nodes * profile.workers_per_node(spec.resources.cpus_per_worker):
        yield f"{spec.num_workers} workers leave devices of {profile.name} idle, which has {profile.devices}"
    if profile.efficiency == 1.0:
        yield "cluster.efficiency is 1: kernels never reach the figures of a data sheet, so times are lower bounds"
    if profile.accelerated and profile.host is None:
        yield "the profile says nothing of the hosts (cluster.host): nothing was considered that offloads to them"
    if model.macs == 0:
        yield "nothing is known of the operations that the model takes: times are those of communication alone"
    yield (
        "activations are planned as this engine keeps them; it does not compute them again (activation "
        "checkpointing), and what that would leave is shown for comparison"
    )


def _warnings(chosen: Candidate, room: Room, model: ModelSummary) -> Iterator[str]:
    if not chosen.fits:
        text = (
            f"a worker needs {chosen.memory_bytes / 1e9:.1f} GB of its device, and "
            f"{max(0, room.device) / 1e9:.1f} GB are there ({MEMORY_SHARE:.0%} of it, without "
            f"{PROCESS_BYTES / 1e9:.1f} GB for the process)"
        )
        if room.host is not None and chosen.memory.offloaded > room.host:
            text += (
                f"; of the host {chosen.memory.offloaded / 1e9:.1f} GB, and {max(0, room.host) / 1e9:.1f} GB are there"
            )
        yield text + "; more workers, or a smaller train.batch_size or micro_batch, may help"
    if not model.layout_invariant:
        yield "layout_invariant: false: another number of workers gives slightly different losses"
