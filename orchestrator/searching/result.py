"""What a search found, for programs: its trials, the best of them, tables, and the spec to go on with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import JobFailed
from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.selection import best_compression, best_trials

if TYPE_CHECKING:
    import pandas
    import pyarrow

OBJECTIVES = ("metric", "latency_ms", "bytes")


@dataclass(frozen=True)
class SearchResult:
    """A search's trials and the best of them.

    Attributes:
        trials: of all phases, in the order in which the phases ran; pruned and failed ones as well.
        best: the completed trial that a run would go on with: of a training phase the one with the best metric, else
            the one that `compress.pick` takes among those within the budget. None where no trial completed.
        base: what the trials of the best one's phase differ from.
        ended: why the search ended before all its trials; empty where it did not.
        run_dir: None for a search that is still under way.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    base: JobSpec
    ended: str = ""
    run_dir: Path | None = None

    @property
    def best_spec(self) -> JobSpec:
        """The job with the best trial's values and without a search: `run` finds its training done already.

        Raises:
            JobFailed: no trial completed.
        """
        if self.best is None:
            raise JobFailed(f"none of the {len(self.trials)} trials completed, so there are no best values")
        return self.base.replace({**self.best.params, "search": None})

    def to_arrow(self) -> "pyarrow.Table":
        """A row a trial, with the columns of trials.parquet."""
        return trials_table(self.trials)

    def to_pandas(self) -> "pandas.DataFrame":
        """Like `to_arrow`; a key that a trial does not have is missing there (None or NaN)."""
        return self.to_arrow().to_pandas()


def result_of(base: JobSpec, trials: Sequence[Trial]) -> SearchResult:
    """What one phase has found so far."""
    return SearchResult(trials=tuple(trials), best=best_of(trials, base), base=base)


def best_of(trials: Sequence[Trial], spec: JobSpec) -> Trial | None:
    """The trial of one phase that a run goes on with; None where none completed."""
    if not trials:
        return None
    if trials[0].phase == "train":
        return next(iter(best_trials(trials, direction=spec.metric_direction, count=1)), None)
    return best_compression(trials, pick=spec.compress.pick, metric_direction=spec.metric_direction)


def trials_table(trials: Sequence[Trial]) -> "pyarrow.Table":
    """A row a trial: parameters by their keys and objectives as `value.metric`, … in columns of their own."""
    import pyarrow as pa

    fixed = {
        "number": pa.int64(),
        "phase": pa.string(),
        "state": pa.string(),
        "cause": pa.string(),
        "violation": pa.float64(),
        "seconds": pa.float64(),
        "steps": pa.int64(),
        "epochs": pa.int64(),
    }
    columns = {name: pa.array([getattr(trial, name) for trial in trials], kind) for name, kind in fixed.items()}
    lineages = [json.dumps([part.to_json() for part in trial.lineage]) if trial.lineage else None for trial in trials]
    columns["lineage"] = pa.array(lineages, pa.string())
    for key in sorted({key for trial in trials for key in trial.params}):
        columns[key] = pa.array(_of_one_kind([trial.params.get(key) for trial in trials]))
    for name in OBJECTIVES:
        columns[f"value.{name}"] = pa.array([trial.values.get(name) for trial in trials], pa.float64())
    return pa.table(columns)


def _of_one_kind(values: list[Any]) -> list[Any]:
    """Values as one column can hold them: a choice between numbers and text becomes text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2 or kinds == {int, float}:
        return [float(value) if value is not None and kinds == {int, float} else value for value in values]
    return [None if value is None else str(value) for value in values]
