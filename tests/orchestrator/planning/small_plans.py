"""Small specs to plan, and what a plan says of its stages."""

from pathlib import Path
from typing import Any

from jobs.records import JobPlan, StagePlan
from jobs.spec import JobSpec

DIGITS: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16]}},
    "train": {"epochs": 2, "batch_size": 32},
}
PRUNE: dict[str, Any] = {"compress.prune.ratio": 0.4}
SEARCH: dict[str, Any] = {"search.space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-1]}}}


def spec_of(values: dict[str, Any] | None = None) -> JobSpec:
    return JobSpec.parse(DIGITS).replace(values or {})


def stages_of(plan: JobPlan) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan.stages}


def actions(plan: JobPlan) -> dict[str, str]:
    return {stage.name: stage.action for stage in plan.stages}


def write_table(path: Path, num_rows: int = 80) -> Path:
    lines = [f"{i},{i * 0.5},{'ab'[i % 2]},{i % 3}" for i in range(num_rows)]
    path.write_text("\n".join(["age,height,kind,label", *lines]) + "\n")
    return path


def table_spec(path: Path, values: dict[str, Any] | None = None) -> JobSpec:
    base = {"data": {"source": {"kind": "csv", "path": str(path)}, "target": "label"}, "model": {"name": "mlp"}}
    return JobSpec.parse(DIGITS | base).replace(values or {})
