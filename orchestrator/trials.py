"""What one trial does: the job's own stages under other values of some keys, and what comes of it as a record."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.errors import Interrupted, SpecError, TrainingDiverged
from jobs.records import Measurement, StageManifest, Trial
from jobs.spec import JobSpec
from jobs.spec.compress import Budget
from jobs.spec.search import Phase
from orchestrator.family import family
from orchestrator.selection import fits
from orchestrator.stages import Stages

Epoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialTask:
    """A trial that is to be run: number and values come from the searcher."""

    number: int
    phase: Phase
    params: dict[str, Any]


def run_trial(task: TrialTask, base: JobSpec, stages: Stages, on_epoch: Epoch) -> Trial:
    """Runs a trial to its end, or to the early end that `stages.should_stop` asks for.

    Args:
        base: what all trials have in common; in the phase `compress`, with the winner's training keys in it.
        on_epoch: gets {epoch, step, loss, metric} after each epoch of the training, also where it was done before.
    """
    started = time.monotonic()
    curve: list[float] = []
    progress = {"epochs": 0, "steps": 0}

    def epoch_done(report: dict[str, Any]) -> None:
        if report["step"] <= progress["steps"]:
            return  # done again after a loss
        curve.append(report["metric"])
        progress["epochs"], progress["steps"] = len(curve), report["step"]
        on_epoch(report)

    def outcome(state: Any, cause: str = "", values: dict[str, float] | None = None, excess: float = 0.0) -> Trial:
        return Trial(
            number=task.number,
            phase=task.phase,
            params=task.params,
            state=state,
            cause=cause,
            values=values or {},
            violation=excess,
            curve=tuple(curve),
            seconds=time.monotonic() - started,
            **progress,
        )

    try:
        spec = base.replace(task.params)
        listened = stages.on_report

        def listen(report: dict[str, Any]) -> None:
            if task.phase == "compress" and report["event"] == "epoch":
                on_epoch(report)  # of a recovery: shown while it runs, and no part of the trial's curve
            elif task.phase != "compress" and report.get("label") == "train":
                if report["event"] == "epoch":
                    epoch_done(report)
                elif report["event"] == "resumed":
                    for epoch in report["epochs"]:  # those of an earlier attempt count as well
                        epoch_done(epoch)
            listened(report)

        stages.on_report = listen
        try:
            dense = stages.train(spec)
            if task.phase != "compress":
                _replay(dense, epoch_done)
            if task.phase == "train":
                return outcome("completed", values={"metric": dense.result["metric"]})
            measured = _measure(spec, stages, dense)
        finally:
            stages.on_report = listened
    except Interrupted:
        return outcome("pruned", "stopped early by the scheduler")
    except (TrainingDiverged, SpecError) as error:
        return outcome("failed", str(error))
    best = best_measured(measured, spec)
    values = {"metric": best.metric.value, "latency_ms": best.latency_ms["batch_1"].p50, "bytes": float(best.bytes)}
    return outcome("completed", values=values, excess=violation(best, measured["dense"], spec.compress.budget))


def failed_trial(task: TrialTask, cause: str, *, seconds: float) -> Trial:
    """The record of a trial that nothing came of."""
    return Trial(
        number=task.number,
        phase=task.phase,
        params=task.params,
        state="failed",
        cause=cause,
        values={},
        seconds=seconds,
    )


def _replay(dense: StageManifest, epoch_done: Epoch) -> None:
    """A training that was there already still shows the scheduler the curve it had."""
    curve, steps = dense.result["curve"], dense.result["steps"]
    for index, metric in enumerate(curve):
        epoch_done({"epoch": index + 1, "step": steps * (index + 1) // len(curve), "loss": None, "metric": metric})


def _measure(spec: JobSpec, stages: Stages, dense: StageManifest) -> dict[str, Measurement]:
    models = family(stages, spec, dense)
    manifest = stages.measure(spec, models, "dense")
    return {name: Measurement.from_json(value) for name, value in manifest.result.items()}


def violation(measurement: Measurement, dense: Measurement, budget: Budget) -> float:
    """How far outside the budget, as a share of what is allowed; 0 or less is within. What Optuna is constrained by."""
    excesses = [-1.0]
    if budget.max_metric_drop is not None and measurement.metric_delta is not None:
        allowed = max(budget.max_metric_drop, 1e-6)
        excesses.append((-measurement.metric_delta.value - budget.max_metric_drop) / allowed)
    if budget.max_latency_ms is not None:
        excesses.append(measurement.latency_ms["batch_1"].p50 / budget.max_latency_ms - 1.0)
    if budget.max_bytes is not None:
        excesses.append(measurement.bytes / budget.max_bytes - 1.0)
    return max(excesses)


def best_measured(measured: dict[str, Measurement], spec: JobSpec) -> Measurement:
    """What the spec would pick of a trial's files, the dense one apart: it is the same in every trial."""
    budget, pick = spec.compress.budget, spec.compress.pick
    dense = measured["dense"]
    if pick == "fastest":  # never by a pack: it is as fast as the dense model, give or take noise
        measured = {name: m for name, m in measured.items() if not name.startswith("packed")}
    made = {name: m for name, m in measured.items() if not name.startswith("dense")} or measured
    sign = -1.0 if spec.metric_direction == "max" else 1.0

    def rank(item: tuple[str, Measurement]) -> tuple[float, float, str]:
        name, m = item
        out = 0.0 if not fits(m, dense, budget) else max(violation(m, dense, budget), 1e-12)
        wanted = {
            "smallest": float(m.bytes),
            "fastest": m.latency_ms["batch_1"].p50,
            "most_accurate": sign * m.metric.value,
        }[pick]
        return out, wanted, name

    return min(made.items(), key=rank)[1]
