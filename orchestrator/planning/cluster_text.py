"""A plan for a cluster, for people to read: as text, and its alternatives as a table for a document."""

import json

from orchestrator.planning.cluster_plan import ClusterPlan, LayoutCost
from orchestrator.planning.layouts import bubble
from orchestrator.units import format_bytes, format_count, format_ms

COLUMNS = (
    "data × tensor × pipeline",
    "ZeRO",
    "micro × acc.",
    "step",
    "compute",
    "comm.",
    "bubble",
    "MFU",
    "device",
    "states",
    "activations",
    "recomputed",
    "sent within",
    "between",
    "",
)


def cluster_lines(plan: ClusterPlan) -> list[str]:
    """The plan as text, one section after another."""
    cluster, chosen, layout = plan.cluster, plan.chosen, plan.section["layout"]
    devices = cluster["gpus_per_node"] or cluster["cpus_per_node"]
    kind = "accelerators" if cluster["gpus_per_node"] else "CPUs"
    spec, memory, batch = plan.spec, plan.memory, plan.batch
    seconds = chosen.step_s
    rows: list[tuple[str, str]] = [
        ("job", f"{spec['name']}, {spec['train']['precision']}, {spec['train']['optimizer']['name']}"),
        ("cluster", f"{cluster['name']}: {cluster['nodes']} × {devices} {kind} of {cluster['memory_gb']:g} GB"),
        (
            "model",
            f"{spec['model']['name']}: {format_count(plan.model.params)} parameters, {format_count(plan.model.macs)} "
            f"MACs a sample",
        ),
        (
            "layout",
            f"{layout_name(chosen)}, ZeRO {chosen.zero_stage}{_offload(chosen)}; batch {batch['global']} = micro "
            f"{batch['micro']} × accumulation {batch['accumulation']} × data {chosen.data}",
        ),
        (
            "memory",
            f"{format_bytes(chosen.memory_bytes)} a device at the peak, {format_bytes(plan.available_bytes)} are "
            f"there: parameters {format_bytes(memory.parameters)}, gradients {format_bytes(memory.gradients)}, "
            f"optimizer {format_bytes(memory.optimizer_states)}, activations {format_bytes(memory.activations)}, batch "
            f"{format_bytes(memory.batch)}, buffers {format_bytes(memory.buffers)}"
            + (f"; in the host's memory {format_bytes(chosen.host_bytes)}" if chosen.host_bytes else ""),
        ),
        ("", f"activations would be {format_bytes(chosen.recomputed_bytes)} if blocks were computed again"),
        (
            "bubble",
            f"{bubble(chosen.pipeline, chosen.accumulation):.1%} of the stages' turns: {chosen.pipeline - 1} of "
            f"{chosen.accumulation + chosen.pipeline - 1}",
        ),
        (
            "sends",
            f"{format_bytes(chosen.within_bytes)} within its node and {format_bytes(chosen.between_bytes)} to others, "
            "the worker that sends most, in a step",
        ),
        (
            "step",
            f"{format_ms(1e3 * seconds)}: compute {format_ms(1e3 * chosen.compute_s)}, tensor "
            f"{format_ms(1e3 * chosen.tensor_s)}, pipeline {format_ms(1e3 * chosen.pipeline_s)}, data "
            f"{format_ms(1e3 * chosen.data_s)}, bubble {format_ms(1e3 * chosen.bubble_s)}, offload "
            f"{format_ms(1e3 * chosen.offload_s)}",
        ),
        ("MFU", f"{chosen.utilization:.1%}"),
        (
            "all",
            f"{plan.total_steps:,} steps: {plan.total_steps * seconds / 3600:.3g} hours, without validation, "
            "checkpoints and restarts",
        ),
        (
            "demand",
            f"{plan.demand.workers} × ({plan.demand.cpus_per_worker} CPU, {plan.demand.gpus_per_worker} GPU, "
            f"{format_bytes(plan.demand.memory_bytes_per_worker)} of the host)",
        ),
    ]
    lines = [f"{name:<8} {text}" for name, text in rows]
    lines += ["", "write into the spec", f"  layout: {_flow(layout)}"]
    resources = {key.partition(".")[2]: value for key, value in plan.section.items() if key != "layout"}
    lines += [f"  resources: {_flow(resources)}"]
    title = f"layouts, best first: {plan.fitting:,} of {plan.considered:,} with their micro-batches fit"
    lines += ["", title, *_aligned(plan)]
    lines += ["", "formulas"]
    lines += [f"  {each['quantity']}: {each['formula']}. {each['source']}" for each in plan.formulas]
    lines += ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []
    lines += ["", *(f"warning: {warning}" for warning in plan.warnings)] if plan.warnings else []
    return lines


def alternatives_table(plan: ClusterPlan) -> str:
    """The alternatives as a table of a Markdown document."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(_row, plan.alternatives)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows)


def layout_name(found: LayoutCost) -> str:
    return f"data {found.data} × tensor {found.tensor} × pipeline {found.pipeline}"


def _row(found: LayoutCost) -> tuple[str, ...]:
    return (
        f"{found.data} × {found.tensor} × {found.pipeline}",
        f"{found.zero_stage}{_offload(found)}",
        f"{found.micro_batch} × {found.accumulation}",
        format_ms(1e3 * found.step_s),
        format_ms(1e3 * found.compute_s),
        format_ms(1e3 * found.communication_s),
        format_ms(1e3 * found.bubble_s),
        f"{found.utilization:.1%}",
        format_bytes(found.memory_bytes),
        format_bytes(found.states_bytes),
        format_bytes(found.activations_bytes),
        format_bytes(found.recomputed_bytes),
        format_bytes(found.within_bytes),
        format_bytes(found.between_bytes),
        found.reason,
    )


def _aligned(plan: ClusterPlan) -> list[str]:
    rows = [COLUMNS, *map(_row, plan.alternatives)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS) - 1)]
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _offload(found: LayoutCost) -> str:
    return "" if found.offload == "none" else f", offload {found.offload}"


def _flow(section: dict[str, object]) -> str:
    """A section on one line of YAML."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in section.items()) + "}"


def _scalar(value: object) -> str:
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)
