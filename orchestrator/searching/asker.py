"""Tune's view of a search: which trial is next, and what became of the ones before.

One asker for independent trials, which come from the study; one for a population, whose members come from the study
and whose generations come from `orchestrator.searching.population`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from jobs.records import Trial
from orchestrator.runs import read_lines
from orchestrator.searching.population import Standing, generation_ends, next_generation
from orchestrator.searching.study import Study
from orchestrator.searching.study.book import append_line
from orchestrator.searching.task import SearchTask
from orchestrator.searching.trials import Leg, TrialTask

LOST = "worker lost: the process that ran the trial"
POPULATION = "population.jsonl"


def _row(report: dict[str, Any]) -> dict[str, Any]:
    return {key: report.get(key) for key in ("epoch", "step", "split", "loss", "metric", "lr")}


class Asker(Searcher):
    """Tune's view of the study: suggests, and books what became of the trials.

    A trial whose actor died is run again by Tune without a word to the searcher: its first epochs come twice.
    """

    def __init__(self, task: SearchTask, study: Study) -> None:
        super().__init__(metric="metric", mode=task.base.metric_direction)
        self.task, self.study = task, study
        self.live: dict[str, TrialTask] = {}
        self.curves: dict[str, dict[Any, dict[str, Any]]] = {}
        self.since: dict[str, float] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        asked = None
        # Whoever is told of a trial may end the search: then no other one is asked for.
        while asked is None:
            if self.task.should_stop() or (asked := self.study.ask()) is None:
                return Searcher.FINISHED
            if asked.repeated is not None:
                self.task.on_trial(asked.repeated)
                asked = None
        number, params = asked.number, asked.params
        self.live[trial_id] = TrialTask(number, self.task.phase, params)
        self.curves[trial_id], self.since[trial_id] = {}, time.monotonic()
        self.task.on_event({"event": "trial_started", "phase": self.task.phase, "trial": number, "params": params})
        return {"number": number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        for report in json.loads(result.get("reports", "[]")):
            self._epoch_done(trial_id, report)

    def _epoch_done(self, trial_id: str, report: dict[str, Any]) -> None:
        number, curve = self.live[trial_id].number, self.curves[trial_id]
        # A recovery that goes on from a checkpoint does not show again what it had shown; a training does.
        epoch = (report["label"], report["step"]) if self.task.phase == "compress" else report["number"]
        if epoch in curve:
            return
        curve[epoch] = report
        self.study.intermediate(number, len(curve), report["metric"])
        self.task.on_event({"event": "trial_epoch", "phase": self.task.phase, "trial": number, **_row(report)})

    def ended(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to end with this result, as the whole search does."""
        return self.task.should_stop() and "record" not in result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result:
            self.on_trial_result(trial_id, result)  # Tune shows the last one here alone
        task = self.live.pop(trial_id)
        record = (result or {}).get("record")
        if record is None and self.task.should_stop():
            return  # the search ends early: the trial stays unfinished, and the next attempt runs it again
        if record is not None:
            trial = Trial.from_json(json.loads(record))
        else:
            curve = list(self.curves[trial_id].values())
            last = curve[-1] if curve else {"step": 0}
            trial = Trial(
                number=task.number,
                phase=task.phase,
                params=task.params,
                state="failed" if error else "pruned",
                cause=LOST if error else f"stopped by the scheduler after {len(curve)} epochs",
                values={},
                curve=tuple(report["metric"] for report in curve),
                seconds=time.monotonic() - self.since[trial_id],
                steps=last["step"],
                epochs=len(curve),
            )
        self._book(trial)

    def _book(self, trial: Trial) -> None:
        self.task.on_trial(self.study.tell(trial))

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its whole configuration into its folder. What it writes is never read: see Study.
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for a checkpoint of the searcher; the study is in its own file already."""
        Path(checkpoint_path).write_text(json.dumps({"study": str(self.task.folder)}))

    def restore(self, checkpoint_path: str) -> None:
        """Tune's base class wants it; only `Tuner.restore` would call it, and we never do: see `Study`."""
        raise NotImplementedError("a search goes on from its study's file")


class PopulationAsker(Asker):
    """Hands out a generation's members, waits for all of them, and decides about the next (Jaderberg et al. 2017).

    Each member's part of a generation is a trial to Tune. What came of it is a line of `population.jsonl`; all else
    follows from these lines, so that a search that was broken off goes on where it was. The study is told once the
    last generation is complete.

    Args:
        evaluations: the steps after which validation is looked at.
    """

    def __init__(self, task: SearchTask, study: Study, evaluations: Sequence[int]) -> None:
        super().__init__(task, study)
        assert task.base.search is not None
        self.search = task.base.search
        self.ends = generation_ends(evaluations, self.search.pbt.interval_epochs)
        self.generation, self.over = 0, False
        self.done: dict[int, Trial] = {}
        self.seconds: dict[int, float] = {}
        records = read_lines(task.folder / POPULATION)
        members = {line["trial"]["number"]: line["trial"]["params"] for line in records if line["generation"] == 0}
        while (asked := study.ask()) is not None:
            members.setdefault(asked.number, asked.params)
        self.waiting = {
            number: TrialTask(number, task.phase, params, Leg((), self.ends[0]))
            for number, params in sorted(members.items())
        }
        self.size = len(members)
        for line in records:  # in the order of their generations
            self._advance(Trial.from_json(line["trial"]))

    @property
    def left(self) -> int:
        """Parts that are still to be run, at most."""
        return len(self.ends) * self.size - self.generation * self.size - len(self.done)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.over or self.task.should_stop():
            return Searcher.FINISHED
        if not self.waiting:
            return None  # others of the generation are still at it
        number = min(self.waiting)
        task = self.waiting.pop(number)
        self.live[trial_id] = task
        self.curves[trial_id], self.since[trial_id] = {}, time.monotonic()
        if self.generation == 0:
            event = {"event": "trial_started", "phase": task.phase, "trial": number, "params": task.params}
            self.task.on_event(event)
        assert task.leg is not None
        before = [part.to_json() for part in task.leg.before]
        leg = {"before": before, "until_step": task.leg.until_step}
        return {"number": number, "params": task.params, "leg": leg}

    def _epoch_done(self, trial_id: str, report: dict[str, Any]) -> None:
        leg = self.live[trial_id].leg
        assert leg is not None
        if leg.before and report["step"] <= leg.before[-1].until_step:
            return  # what led to this generation is in the checkpoint's history, and has been shown
        super()._epoch_done(trial_id, report)

    def _book(self, trial: Trial) -> None:
        self.study.flush()
        append_line(self.task.folder / POPULATION, {"generation": self.generation, "trial": trial.to_json()})
        self._advance(trial)

    def _advance(self, trial: Trial) -> None:
        self.waiting.pop(trial.number, None)
        self.done[trial.number] = trial
        self.seconds[trial.number] = self.seconds.get(trial.number, 0.0) + trial.seconds
        if len(self.done) < self.size:
            return
        alive = any(member.state == "completed" for member in self.done.values())
        if not alive or self.generation == len(self.ends) - 1:
            self.over = True
            return
        standings = [
            Standing(number, member.params, member.values.get("metric")) for number, member in self.done.items()
        ]
        moves = next_generation(
            sorted(standings, key=lambda standing: standing.number),
            self.study.space,
            self.search.pbt,
            direction=self.task.base.metric_direction,
            seed=self.search.seed,
            generation=self.generation,
        )
        self.generation += 1
        self.waiting = {
            number: TrialTask(
                number,
                self.task.phase,
                move.params,
                Leg(self.done[move.source].lineage, self.ends[self.generation]),
            )
            for number, move in sorted(moves.items())
        }
        self.done = {}

    def conclude(self) -> None:
        """Tells the study what became of the members, once the last generation is complete."""
        if not self.over:
            return
        told = {trial.number for trial in self.study.finished}
        for number, trial in sorted(self.done.items()):
            if number not in told:
                whole = trial.model_copy(update={"seconds": self.seconds[number]})
                self.task.on_trial(self.study.tell(whole))
