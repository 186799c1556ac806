"""What one trial does: the job's own stages under other values of some keys, and what comes of it as a record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import Interrupted, OutOfMemory, SpecError, TrainingDiverged, WorkerLost, ran_out_of_memory
from jobs.records import Measurement, Segment, StageManifest, Trial
from jobs.spec import JobSpec
from jobs.spec.compress import Budget
from jobs.spec.search import Phase
from orchestrator.family import family
from orchestrator.searching.progress import kind_of_cause
from orchestrator.selection import fits
from orchestrator.stages import Stages

Epoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Leg:
    """The part of a member's training that is to be run: from the end of `before` to `until_step`."""

    before: tuple[Segment, ...]
    until_step: int


@dataclass(frozen=True)
class TrialTask:
    """A trial that is to be run: number and values come from the searcher.

    Attributes:
        leg: of a member of a population, of which each generation is run by itself.
    """

    number: int
    phase: Phase
    params: dict[str, Any]
    leg: Leg | None = None


def run_trial(
    task: TrialTask, base: JobSpec, stages: Stages, on_epoch: Epoch, trained: Sequence[Segment] = ()
) -> Trial:
    """Runs a trial to its end, or to the early end that `stages.should_stop` asks for.

    Args:
        base: what all trials have in common; in the phase `compress`, with the winner's training keys in it.
        trained: in the phase `compress`, the lineage of the winner's model, where it has one.
        on_epoch: gets {epoch, step, loss, metric} after each epoch of the training, also where it was done before.
    """
    started = time.monotonic()
    curve: list[float] = []
    progress = {"epochs": 0, "steps": 0}
    lineage = task.leg.before if task.leg else ()

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
            lineage=lineage,
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
            if task.leg is not None:
                dense = stages.segment(spec, lineage, task.params, task.leg.until_step)
                here = Segment(member=task.number, params=task.params, until_step=task.leg.until_step, stage=dense.hash)
                lineage = (*lineage, here)
            else:
                dense = stages.lineage(base, trained) if trained else stages.train(spec)
            if task.phase != "compress":
                _replay(dense, epoch_done)
            if task.phase == "train":
                return outcome("completed", values={"metric": dense.result["metric"]})
            measured = _measure(spec, stages, dense)
        finally:
            stages.on_report = listened
    except Interrupted:
        return outcome("pruned", "stopped early by the scheduler")
    except (TrainingDiverged, OutOfMemory, WorkerLost, SpecError) as error:
        return outcome("failed", failure_cause(error))
    best = best_measured(measured, spec)
    values = {"metric": best.metric.value, "latency_ms": best.latency_ms["batch_1"].p50, "bytes": float(best.bytes)}
    return outcome("completed", values=values, excess=violation(best, measured["dense"], spec.compress.budget))


def failure_cause(error: Exception) -> str:
    """Why a trial failed: one of a few kinds, a colon, the error itself. Kinds are what `count_causes` counts."""
    if isinstance(error, TrainingDiverged):
        return f"diverged: {error}"
    if isinstance(error, OutOfMemory) or ran_out_of_memory(error):
        return f"out of memory: {error}"
    if isinstance(error, WorkerLost):
        # A worker that was killed for want of memory is gone like any other: what says so is the cause of its loss.
        return f"out of memory: {error}" if "out of memory" in str(error) else f"worker lost: {error}"
    if isinstance(error, SpecError):
        return f"illegal together: {error}"
    return f"{type(error).__name__}: {error}"


def lost_to_memory(trial: Trial, oom_kills: int) -> Trial:
    """Where a worker was lost while the kernel killed processes for want of memory, it was most likely one of them."""
    if oom_kills < 1 or not trial.cause.startswith("worker lost:"):
        return trial
    killed = f"{oom_kills} process{'es' if oom_kills > 1 else ''}"
    cause = f"out of memory: the kernel killed {killed} for want of it meanwhile; {trial.cause}"
    return trial.model_copy(update={"cause": cause})


def count_causes(trials: Sequence[Trial]) -> str:
    """The causes of trials that did not complete, by kind, the most frequent first, each with its first example.

    >>> trial = failed_trial(TrialTask(0, "train", {}), "diverged: the loss is nan within step 3", seconds=1.0)
    >>> count_causes([trial, trial])
    '2 × diverged: the loss is nan within step 3'
    """
    kinds: dict[str, list[str]] = {}
    for trial in trials:
        kinds.setdefault(kind_of_cause(trial.cause.partition(":")[0]), []).append(trial.cause)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    return "; ".join(f"{len(causes)} × {causes[0]}" for causes in ordered)


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
        step = steps * (index + 1) // len(curve)
        epoch_done({"epoch": index + 1, "step": step, "total_steps": steps, "loss": None, "metric": metric})


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
