"""A plan for people to read."""

from typing import Any

from jobs.layout import stages_of
from jobs.records import JobPlan, LayoutAlternative
from orchestrator.planning.layouts import bubble
from orchestrator.units import format_bytes, format_count


def plan_lines(plan: JobPlan) -> list[str]:
    """The plan as text, one section after another."""
    spec, info, memory = plan.spec, plan.dataset, plan.memory
    share, layout = plan.batch, plan.layout
    rows: list[tuple[str, str]] = [
        ("job", f"{spec['name']} (project {spec['project']}, priority {spec['priority']})"),
        (
            "data",
            f"{spec['data']['source']['kind']}, {info.task}, sample {'×'.join(map(str, info.input_shape))}, "
            f"{info.outputs} outputs; " + ", ".join(f"{name} {n:,}" for name, n in info.num_samples.items()),
        ),
        (
            "model",
            f"{spec['model']['name']}: {format_count(plan.model.params)} parameters, {format_count(plan.model.macs)} "
            f"MACs, layout-invariant: {'yes' if plan.model.layout_invariant else 'no'}",
        ),
        ("steps", f"{plan.total_steps:,} of {share['global']} samples"),
        (
            "layout",
            f"data {layout['data']} × tensor {layout['tensor']} × pipeline {layout['pipeline']}, ZeRO "
            f"{layout['zero_stage']}{_offload(layout['offload'])}; batch {share['global']} = micro {share['micro']} × "
            f"accumulation {share['accumulation']} × data {layout['data']}",
        ),
        *_elastic(plan),
        *_pipeline(plan),
        (
            "memory",
            f"{format_bytes(memory.total)} a worker at most: parameters {format_bytes(memory.parameters)}, gradients "
            f"{format_bytes(memory.gradients)}, optimizer {format_bytes(memory.optimizer_states)}, activations "
            f"{format_bytes(memory.activations)}, batch {format_bytes(memory.batch)}, buffers "
            f"{format_bytes(memory.buffers)}; between steps {format_bytes(memory.resident)}"
            + (f"; off the device {format_bytes(memory.offloaded)}" if memory.offloaded else ""),
        ),
        (
            "demand",
            f"{_range(plan.demand.fewest_workers, plan.demand.workers)} × ({plan.demand.cpus_per_worker} CPU, "
            f"{plan.demand.gpus_per_worker} GPU, "
            f"{format_bytes(plan.demand.memory_bytes_per_worker)})",
        ),
    ]
    lines = [f"{name:<8} {text}" for name, text in rows]
    lines += ["", "layouts considered, best first", *map(_alternative, plan.alternatives)]
    lines += ["", "stages"]
    lines += [f"  {stage.action:<6} {stage.name:<16} {stage.reason}" for stage in plan.stages]
    if plan.schemes:
        lines += ["", f"quantization, in this order; {plan.host}"]
        lines += [f"  {scheme.name:<13} {scheme.reason}" for scheme in plan.schemes]
    lines += ["", "deepspeed", *_tree(plan.deepspeed), "", "spec, every default resolved", *_tree(_without_nulls(spec))]
    lines += ["", *(f"warning: {warning}" for warning in plan.warnings)] if plan.warnings else []
    return lines


def _range(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def _elastic(plan: JobPlan) -> list[tuple[str, str]]:
    """The layouts for fewer workers."""
    return [
        (
            "fewer",
            f"{layout['data'] * layout['tensor'] * layout['pipeline']} workers: data {layout['data']} × tensor "
            f"{layout['tensor']} × pipeline {layout['pipeline']}, ZeRO {layout['zero_stage']}",
        )
        for layout in plan.smaller_layouts
    ]


def _pipeline(plan: JobPlan) -> list[tuple[str, str]]:
    """Which blocks lie in which stage, and how much each stage waits."""
    stages, accumulation = plan.layout["pipeline"], plan.batch["accumulation"]
    if stages == 1:
        return []
    names = [block.name for block in plan.model.blocks]
    held = "; ".join(
        f"stage {number}: {', '.join(names[blocks.start : blocks.stop])}"
        for number, blocks in enumerate(stages_of(plan.model, stages), start=1)
    )
    return [
        ("stages", held),
        (
            "bubble",
            f"{bubble(stages, accumulation):.0%} of a step: each stage waits for {stages - 1} of "
            f"{accumulation + stages - 1} turns",
        ),
    ]


def _alternative(found: LayoutAlternative) -> str:
    return (
        f"  {'*' if found.reason.startswith('chosen') else ' '} data {found.data} × tensor {found.tensor} × pipeline "
        f"{found.pipeline}, ZeRO {found.zero_stage}{_offload(found.offload)}: {format_bytes(found.memory_bytes)} a "
        f"worker, sends {format_bytes(found.communication_bytes)} a step, {found.relative_work:.2f}× the work; "
        f"{found.reason}"
    )


def _offload(place: str) -> str:
    return "" if place == "none" else f", offload {place}"


def _without_nulls(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(value) for value in node] if isinstance(node, list) else node


def _tree(document: dict[str, Any]) -> list[str]:
    import yaml

    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return [f"  {line}" for line in text.splitlines()]
