"""Optuna's study of a search: asked for values and told what became of them, without Ray.

A stopped trial is told as PRUNED, a diverged or lost one as FAIL, and the budget as a constraint, so the sampler never
learns from half a result. The study is a journal file, which optuna-dashboard opens and a resumed search goes on from.
"""

import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from jobs.errors import JobFailed
from jobs.records import Trial
from jobs.spec import JobSpec
from jobs.spec.search import Direction, Phase
from jobs.spec.space import Grid
from orchestrator.searching.study import cmaes
from orchestrator.searching.study.book import (
    VIOLATION,
    append_record,
    flush_journal,
    open_journal,
    read_records,
    record_of,
)
from orchestrator.searching.study.samplers import Planned, optuna_sampler, seed_of, sobol_point
from orchestrator.searching.study.space import drawn, from_params, is_complete

BROKEN_OFF = "the search broke off while the values were drawn"


def directions(spec: JobSpec, phase: Phase) -> dict[str, Direction]:
    """The objectives of a phase. Training keys alone change no file: that phase looks at the metric only."""
    assert spec.search is not None
    found: dict[str, Direction] = {"metric": spec.metric_direction}
    if phase != "train":
        found |= dict.fromkeys(spec.search.objectives.of_files, "min")
    return found


@dataclass(frozen=True)
class Asked:
    """A trial that the searcher wants.

    Attributes:
        number: under which it is told; the next one's is one higher, apart from trials that were never handed out.
        params: values by key; keys whose condition does not hold are left out.
        resumed: it ran when an earlier process ended, and is to be run (again) under its own number.
        repeated: its values are those of a completed trial: the record that was booked for it. Nothing is to be run.
    """

    number: int
    params: dict[str, Any]
    resumed: bool = False
    repeated: Trial | None = None


class Study:
    """The study of one phase, kept in a folder of which it is the only writer.

    The values of a trial are a function of the seed, its place in the order of asking, and the trials finished by then:
    one at a time, a search that was broken off and goes on asks for exactly what it would have asked for.

    Raises:
        JobFailed: the files are damaged or do not belong together.
    """

    def __init__(self, spec: JobSpec, phase: Phase, folder: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert spec.search is not None
        self.search, self.phase, self.folder = spec.search, phase, folder
        self.objectives = directions(spec, phase)
        self.space = spec.search.dimensions(phase)
        self.total = spec.search.num_trials(phase)
        self._storage = open_journal(folder)
        known = self._storage.get_all_studies()
        # The same search under another job's name goes on from the same file.
        name = known[0].study_name if known else f"{spec.name}/{phase}"
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            sampler=RandomSampler(seed=0),  # never asked: each trial has its own
            directions=["maximize" if d == "max" else "minimize" for d in self.objectives.values()],
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(name)
        self._running: dict[int, optuna.Trial] = {}
        self._reported: dict[int, int] = {}
        self._finished: dict[int, Trial] = {}
        self._completed: dict[str, Trial] = {}
        self._resumable: list[Asked] = []
        self._reopen()

    @property
    def finished(self) -> list[Trial]:
        """Every trial that is done, by number: those of earlier processes too."""
        return [self._finished[number] for number in sorted(self._finished)]

    def ask(self) -> Asked | None:
        """The next trial; None when all have been handed out.

        A trial whose values a completed one has had is booked at once with its outcome: the stages are deterministic
        and kept, so that running it would only find what is there.
        """
        if self._resumable:
            return self._resumable.pop(0)
        trials = self._study.get_trials(deepcopy=False)
        handed_out = (trial for trial in trials if trial.state != TrialState.WAITING)
        place = sum(trial.user_attrs.get("cause") != BROKEN_OFF for trial in handed_out)
        if place >= self.total:
            return None
        self._study.sampler, notes = self._sampler(place, trials)
        trial = self._study.ask()
        for key, value in notes.items():
            trial.set_user_attr(key, value)
        params = drawn(trial, self.space)
        self._running[trial.number] = trial
        asked = Asked(trial.number, params)
        if (same := self._completed.get(_key(params))) is not None:
            return Asked(trial.number, params, repeated=self.tell(_repetition(asked, same)))
        return asked

    def intermediate(self, number: int, epoch: int, metric: float) -> None:
        """Notes the metric after an epoch, once. Optuna keeps it for studies of one objective alone."""
        if len(self.objectives) == 1 and epoch > self._reported.get(number, 0):
            self._running[number].report(metric, epoch)
            self._reported[number] = epoch

    def tell(self, trial: Trial) -> Trial:
        """Books a trial as what it was, and returns it as booked.

        One that completed without every objective, or with one that is no number, has failed.
        """
        booked = self._judged(trial)
        self.flush()
        append_record(self.folder, booked)
        self._book(booked)
        return booked

    def flush(self) -> None:
        """Has on disk what was asked for so far. Whoever writes of a trial elsewhere calls this first."""
        flush_journal(self.folder)

    def _judged(self, trial: Trial) -> Trial:
        if trial.state != "completed":
            return trial
        missing = [name for name in self.objectives if trial.values.get(name) is None]
        no_number = [name for name in self.objectives if not math.isfinite(trial.values.get(name) or 0.0)]
        cause = ""
        if missing:
            cause = f"no {', '.join(missing)} was measured"
        elif no_number:
            cause = f"{', '.join(f'{name} is {trial.values[name]}' for name in no_number)}"
        elif math.isnan(trial.violation):
            cause = "whether it keeps to the budget was not measured"
        if not cause:
            return trial
        return trial.model_copy(update={"state": "failed", "cause": cause, "values": {}, "violation": 0.0})

    def _book(self, trial: Trial) -> None:
        """Tells Optuna; the record has been written already."""
        asked = self._running.pop(trial.number)
        asked.set_user_attr("cause", trial.cause)
        if trial.lineage:
            asked.set_user_attr("lineage", [part.to_json() for part in trial.lineage])
        if trial.state == "completed":
            if self.phase != "train":  # the budget is of files
                asked.set_constraint(VIOLATION, trial.violation)
            values = [trial.values[name] for name in self.objectives]
            self._study.tell(asked, values)
            self._completed.setdefault(_key(trial.params), trial)
        else:
            self._study.tell(asked, state=TrialState.PRUNED if trial.state == "pruned" else TrialState.FAIL)
        self._finished[trial.number] = trial

    def _reopen(self) -> None:
        """Takes up what an earlier process left: trials that are done, half told, running, or never handed out."""
        records = read_records(self.folder)
        trials = self._study.get_trials(deepcopy=False)
        if unknown := sorted(set(records) - {trial.number for trial in trials}):
            raise JobFailed(
                f"trial {unknown[0]} has a record in {self.folder}, and the journal of the study knows nothing of it; "
                "remove the folder to begin the search anew"
            )
        for trial in trials:
            number = trial.number
            if trial.state.is_finished():
                if trial.user_attrs.get("cause") != BROKEN_OFF:
                    record = records.get(number) or record_of(trial, self.phase, self.space, list(self.objectives))
                    self._finished[number] = record
                    if record.state == "completed":
                        self._completed.setdefault(_key(record.params), record)
                continue
            if trial.state == TrialState.WAITING:
                continue  # put there by hand, in a dashboard: `ask` hands it out
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
            self._running[number] = optuna.Trial(self._study, trial_id)
            self._reported[number] = max(trial.intermediate_values, default=0)
            if number in records:
                self._book(records[number])
            elif is_complete(trial.params, self.space):
                self._resumable.append(Asked(number, from_params(trial.params, self.space), resumed=True))
            else:
                broken = self._running.pop(number)
                broken.set_user_attr("cause", BROKEN_OFF)
                self._study.tell(broken, state=TrialState.FAIL)

    def _sampler(self, place: int, trials: list[FrozenTrial]) -> tuple[BaseSampler, dict[str, Any]]:
        """Who draws the trial at a place, and what is to be noted with it."""
        notes: dict[str, Any] = {}
        match self.search.algorithm:
            case "grid":
                values = self._grid.point(self._grid_places[place])
            case "qmc":
                values = sobol_point(self.space, self.search.seed, place)
            case "cmaes":
                values, generation = cmaes.draw(
                    self.space,
                    self._individuals(trials),
                    self.search.population(self.phase),
                    seed_of(self.search.seed, place),
                )
                notes = {cmaes.GENERATION: generation}
            case _:
                return optuna_sampler(self.search, self.phase, place), notes
        return Planned(values, self.space), notes

    def _individuals(self, trials: list[FrozenTrial]) -> list[cmaes.Individual]:
        """What CMA-ES learns from: completed trials, and behind them those that were stopped."""
        sign = -1.0 if self.objectives["metric"] == "max" else 1.0
        found = []
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                assert trial.value is not None
                rank = cmaes.completed_rank(sign * trial.value, trial.constraints.get(VIOLATION, 0.0))
            elif trial.state == TrialState.PRUNED:
                last = max(trial.intermediate_values, default=0)
                rank = cmaes.stopped_rank(last, sign * trial.intermediate_values.get(last, math.nan))
            else:
                continue
            found.append(cmaes.Individual(trial.number, trial.user_attrs[cmaes.GENERATION], trial.params, rank))
        return found

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.space)

    @cached_property
    def _grid_places(self) -> range | list[int]:
        """Which points are tried, in which order: all of them as they are written, or so many at random."""
        size, draw = self._grid.size, random.Random(self.search.seed)
        if size <= self.total:
            return range(size)
        if size <= sys.maxsize:
            return draw.sample(range(size), self.total)
        # A range has no length beyond that, and among so many points none is drawn twice but by a miracle.
        return [draw.randrange(size) for _ in range(self.total)]


def _repetition(asked: Asked, same: Trial) -> Trial:
    """The record of a trial whose values another one has had."""
    return Trial(
        number=asked.number,
        phase=same.phase,
        params=asked.params,
        state="completed",
        cause=f"same values as trial {same.number}",
        values=same.values,
        violation=same.violation,
        seconds=0.0,
    )


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
