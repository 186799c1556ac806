"""The run's report put together: from the selection, the trials, the curves and the events."""

from pathlib import Path
from typing import Any

from jobs.records import JobPlan, RunReport, Trial
from jobs.spec import JobSpec
from jobs.storage import atomic_path, read_json
from orchestrator.environment import environment
from orchestrator.goodput import goodput
from orchestrator.runs import Run
from orchestrator.searching.importance import importance
from orchestrator.searching.result import trials_table
from orchestrator.selection import Selection, best_trials, trial_front
from orchestrator.stages import Model, Stages
from orchestrator.views.study import named_parts


def write_trials(path: Path, trials: list[Trial]) -> None:
    """A row a trial: parameters and objectives as columns of their own."""
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(trials_table(trials), temporary)


def build_report(
    run: Run,
    spec: JobSpec,
    plan: JobPlan,
    selection: Selection,
    *,
    trials: list[Trial],
    curves: dict[str, list[dict[str, Any]]],
    slots: int,
) -> RunReport:
    """The record that report.json and report.html are written from."""
    events = run.events()
    stages = [
        {"name": e["stage"], "hash": e["stage_hash"], "reused": e["reused"], "seconds": e["seconds"]}
        for e in events
        if e["event"] == "stage"
    ]
    prepared = [e for e in events if e["event"] == "prepared"][-1]
    stages.insert(0, {"name": "prepare", "hash": prepared["dataset"], **_pick(prepared, "reused", "seconds")})
    newest = {stage["name"]: stage for stage in stages}
    return RunReport(
        run_id=run.id,
        name=spec.name,
        state="succeeded",
        layout=plan.layout,
        model=plan.model.to_json(),
        dataset=plan.dataset.to_json() | {"fingerprint": plan.hashes["dataset"]},
        spec=spec.resolved(),
        stages=tuple(newest.values()),
        curves=curves,
        search=_search_summary(spec, trials),
        artifacts=selection.artifacts,
        selected=selection.selected,
        budget=spec.compress.budget.model_dump(mode="json"),
        warnings=(*plan.warnings, *_warnings(events), *_refusals(events), *selection.warnings),
        goodput=goodput(events, slots),
        environment=environment(),
    )


def _refusals(events: list[dict[str, Any]]) -> list[str]:
    """Schemes that did not suit a model, each once."""
    refused = {event["artifact"]: event["reason"] for event in events if event["event"] == "refused"}
    return [f"{artifact} was not made: {reason}" for artifact, reason in refused.items()]


def _warnings(events: list[dict[str, Any]]) -> list[str]:
    """What was warned of on the way, each once."""
    return list(dict.fromkeys(event["message"] for event in events if event["event"] == "warning"))


def _pick(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


def training_curves(models: list[Model], stages: Stages) -> dict[str, list[dict[str, Any]]]:
    """The learning curves behind the models, from the stages that trained them."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        if model.recipe.get("scheme") == "int8_qat":
            curves[f"quantize/{model.name}"] = read_json(stages.folder(model.manifest) / "history.json")["epochs"]
        if model.stage != "quantize":
            word, prefix = {
                "dense": ("train", "dense"),
                "prune": ("recover", "pruned"),
                "low_rank": ("recover/lowrank", "lowrank"),
                "pack": ("recover/packed", "packed"),
            }[model.stage]
            name = word + model.name.removeprefix(prefix)
            curves[name] = read_json(stages.folder(model.stored) / "history.json")["epochs"]
    return curves


def _search_summary(spec: JobSpec, trials: list[Trial]) -> dict[str, Any] | None:
    from orchestrator.searching.study.study import directions

    search = spec.search
    if search is None:
        return None
    states = [trial.state for trial in trials]
    objectives = {"metric": spec.metric_direction, **search.objectives.model_dump(exclude_none=True)}
    best = best_trials(trials, direction=spec.metric_direction, count=1)
    return {
        "trials": [trial.to_json() for trial in trials],
        "completed": states.count("completed"),
        "pruned": states.count("pruned"),
        "errored": states.count("failed"),
        "best": best[0].number if best else None,
        "pareto": list(trial_front(trials, objectives)),
        "space": {
            key: dim.model_dump(mode="json", by_alias=True, exclude_none=True) for key, dim in search.space.items()
        },
        "objectives": objectives,
        "mode": search.mode,
        "algorithm": search.algorithm,
        "scheduler": search.scheduler,
        "importance": {
            name: importance(part, search.dimensions(part[0].phase), list(directions(spec, part[0].phase)))
            for name, part in named_parts(trials).items()
        },
    }
