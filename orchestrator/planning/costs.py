"""What a step costs on a cluster of which a profile is known: seconds by what they go to, and bytes by where. Pure.

Nothing overlaps: the engine computes, then communicates (`overlap_comm: false` in `jobs.train.config`). What is not in
here: the update on an accelerator, reading data, the host's own work, and that small micro-batches use kernels badly.

Volumes and memory are those of `jobs.train.memory`, which the planner without a profile chooses by as well.
"""

from dataclasses import dataclass

from jobs.layout import BatchShare, ParallelLayout
from jobs.records import ModelSummary
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile
from jobs.train.memory import stage_traffic, update_bytes, worker_params
from orchestrator.planning.layouts import bubble, stage_macs
from orchestrator.planning.network import Carried, Network

FLOPS_A_MAC = 2
PASSES = 3
"""A backward pass is two forward passes: gradients of inputs and of weights (Narayanan et al. 2021, appendix)."""


@dataclass(frozen=True)
class Machine:
    """The rates of a profile's cluster, for the workers of a job.

    Attributes:
        peak: operations a second of a worker by its profile; `reached`: those that its kernels reach.
        link: bytes a second between a host and each of its accelerators; None without offload.
        host_memory: bytes a second of a host's memory, for all of its workers together.
    """

    network: Network
    peak: float
    reached: float
    link: float | None = None
    host_memory: float | None = None

    @classmethod
    def of(cls, profile: ClusterProfile, spec: JobSpec) -> "Machine":
        """Raises SpecError where the profile has no figure for the job's precision."""
        cpus = spec.resources.cpus_per_worker
        devices = 1 if profile.accelerated else cpus
        peak = profile.teraflops(spec.train.precision) * 1e12 * devices
        # A link that the cluster does not need is never sent over.
        network = Network(
            profile.workers_per_node(cpus),
            within=(profile.within_gb_per_s or 1.0) * 1e9 * devices,
            between=(profile.between_gb_per_s or 1.0) * 1e9 * devices,
            within_s=profile.latency_us.within * 1e-6,
            between_s=profile.latency_us.between * 1e-6,
        )
        host = profile.host if profile.accelerated else None
        return cls(
            network,
            peak,
            peak * profile.efficiency,
            link=host.link_gb_per_s * 1e9 if host else None,
            host_memory=host.memory_gb_per_s * 1e9 if host else None,
        )


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step by what they go to, and bytes that the worker with the most sends.

    Attributes:
        tensor_s, pipeline_s, data_s: communication, by axis.
        bubble_s: in which a stage waits for others to fill and empty the pipeline.
        offload_s: in which gradients and weights go to the host and back, and the host computes the update.
        utilization: operations that the model needs, of what all workers could do in that time.
    """

    compute_s: float
    tensor_s: float
    pipeline_s: float
    data_s: float
    bubble_s: float
    offload_s: float
    within_bytes: int
    between_bytes: int
    utilization: float

    @property
    def communication_s(self) -> float:
        return self.tensor_s + self.pipeline_s + self.data_s

    @property
    def step_s(self) -> float:
        return self.compute_s + self.communication_s + self.bubble_s + self.offload_s


def step_cost(
    model: ModelSummary,
    layout: ParallelLayout,
    share: BatchShare,
    machine: Machine,
    *,
    precision: str,
    optimizer: str = "adamw",
) -> StepCost:
    """Of a step in which every stage takes as long as the slowest one, and data peers wait for the slowest stage."""
    network, samples = machine.network, share.micro * share.accumulation
    slowest = max(stage_macs(model, layout.tensor, layout.pipeline))
    compute = PASSES * FLOPS_A_MAC * slowest * samples / machine.reached
    stages = [
        (
            network.ring(layout, "data", found.data, found.data_messages),
            network.ring(layout, "tensor", found.tensor, found.tensor_messages),
            network.hand_on(layout, found.pipeline, found.pipeline_messages),
        )
        for found in stage_traffic(model, layout, share, precision=precision)
    ]
    data, tensor, handed = (max(part.seconds for part in parts) for parts in zip(*stages, strict=True))
    busiest = max((sum(parts, Carried()) for parts in stages), key=lambda sent: sent.within + sent.between)
    # Of m + p − 1 turns a stage waits for p − 1, so a step is 1 / (1 − bubble) as long as its m turns.
    waiting = bubble(layout.pipeline, share.accumulation)
    bubble_s = (compute + tensor + handed) * waiting / (1.0 - waiting)
    offload = offload_seconds(model, layout, share, machine, precision=precision, optimizer=optimizer)
    step = compute + data + tensor + handed + bubble_s + offload
    needed = PASSES * FLOPS_A_MAC * model.macs * share.global_batch
    return StepCost(
        compute_s=compute,
        tensor_s=tensor,
        pipeline_s=handed,
        data_s=data,
        bubble_s=bubble_s,
        offload_s=offload,
        within_bytes=round(busiest.within),
        between_bytes=round(busiest.between),
        utilization=needed / (machine.peak * layout.size * step) if needed else 0.0,
    )


def offload_seconds(
    model: ModelSummary,
    layout: ParallelLayout,
    share: BatchShare,
    machine: Machine,
    *,
    precision: str,
    optimizer: str,
) -> float:
    """Time that offloaded states cost in a step (Ren et al. 2021, ZeRO-Offload, section 4; 0 without an accelerator).

    A worker sends the gradients of its partition to the host in fp32, and takes the updated weights back; from ZeRO 2
    on the gradients of each micro-batch, at ZeRO 3 the weights for each of its passes too. The host's processors then
    update all its workers' partitions, as fast as its memory goes.
    """
    if layout.offload == "none" or machine.link is None or machine.host_memory is None:
        return 0.0
    width = 4 if precision == "fp32" else 2
    params = worker_params(model, layout) / layout.data
    times = share.accumulation if layout.zero_stage > 1 else 1
    fetched = 2 * share.accumulation if layout.zero_stage == 3 else 1
    workers = min(machine.network.workers_per_node, layout.size)
    return params * (
        (4 * times + width * fetched) / machine.link + update_bytes(optimizer) * workers / machine.host_memory
    )
