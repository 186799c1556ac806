"""Optuna's study of a search: asked for values and told what became of them, without Ray.

A stopped trial is told as PRUNED, a diverged or lost one as FAIL, and the budget as a constraint, so the sampler never
learns from half a result. The study is a journal file, which optuna-dashboard opens and a resumed search goes on from.
"""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from jobs.records import Trial
from jobs.spec import JobSpec
from jobs.spec.search import Dimension, Phase


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's form of a dimension."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    assert dimension.bounds is not None
    low, high = dimension.bounds
    if dimension.int_uniform or dimension.int_loguniform:
        return IntDistribution(int(low), int(high), log=dimension.int_loguniform is not None)
    return FloatDistribution(low, high, log=dimension.loguniform is not None)


def directions(spec: JobSpec, phase: Phase) -> dict[str, str]:
    """The objectives of a phase. Training keys alone change no file: that phase looks at the metric only."""
    assert spec.search is not None
    found = {"metric": spec.metric_direction}
    if phase != "train":
        named = spec.search.objectives.model_dump(exclude_none=True)
        found |= {name: "min" for name in ("latency_ms", "bytes") if name in named}
    return dict(found)


class Study:
    """Optuna's study of one phase, kept in a file. A trial's sampler seed is a function of (seed, number) alone."""

    def __init__(self, spec: JobSpec, phase: Phase, folder: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert spec.search is not None
        search = spec.search
        folder.mkdir(parents=True, exist_ok=True)
        self.search = search
        self.objectives = directions(spec, phase)
        self.space = {key: distribution(dim) for key, dim in search.dimensions(phase).items()}
        dims = search.dimensions(phase)
        self.grid = (
            list(itertools.product(*(dims[key].grid or () for key in dims))) if search.algorithm == "grid" else []
        )
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
            study_name=f"{spec.name}/{phase}",
            directions=["maximize" if d == "max" else "minimize" for d in self.objectives.values()],
            load_if_exists=True,
        )
        self._asked: dict[int, optuna.Trial] = {}
        self._repeat = self._orphans()

    def _orphans(self) -> list[dict[str, Any]]:
        """Trials that were running when an earlier driver died: booked as failed, and their values tried again."""
        lost = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in lost:
            self.study.tell(trial.number, state=TrialState.FAIL)
        return [dict(trial.params) for trial in lost]

    def _sampler(self, number: int) -> BaseSampler:
        seed = int.from_bytes(hashlib.sha256(f"{self.search.seed}/{number}".encode()).digest()[:4], "big")
        if self.search.algorithm == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=True,
        )

    def ask(self, index: int) -> tuple[int, dict[str, Any]]:
        """The next trial's number and values; `index` counts the trials of the search, for the grid."""
        if self._repeat:
            self.study.enqueue_trial(self._repeat.pop(0))
        elif self.grid:
            self.study.enqueue_trial(dict(zip(self.space, self.grid[index % len(self.grid)], strict=True)))
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self._sampler(number)
        trial = self.study.ask(self.space)
        self._asked[trial.number] = trial
        return trial.number, dict(trial.params)

    def intermediate(self, number: int, epoch: int, metric: float) -> None:
        if len(self.objectives) == 1:
            self._asked[number].report(metric, epoch)

    def tell(self, trial: Trial) -> None:
        """Books a trial as what it was."""
        asked = self._asked.pop(trial.number)
        asked.set_user_attr("cause", trial.cause)
        if trial.state == "completed":
            asked.set_constraint("budget", trial.violation)
            self.study.tell(asked, [trial.values[name] for name in self.objectives])
        elif trial.state == "pruned":
            self.study.tell(asked, state=TrialState.PRUNED)
        else:
            self.study.tell(asked, state=TrialState.FAIL)
