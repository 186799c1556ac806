"""`search:` which keys of the spec are searched, by what algorithm, for which objectives."""

import difflib
import math
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.section import Section, illegal
from jobs.spec.dimension import MAX_GRID_VALUES, Dimension
from jobs.spec.space import MAX_COMBINATIONS, Grid, is_conditional, space_problem

Direction = Literal["min", "max"]
Phase = Literal["train", "compress", "joint"]
Algorithm = Literal["random", "grid", "tpe", "gp", "nsga2", "cmaes", "qmc"]

CONDITIONAL_ALGORITHMS = ("random", "grid", "tpe", "qmc")
"""Those that learn about a key that is not always there, or that learn nothing anyway."""
STARTUP_TRIALS = 10
"""Trials that tpe and gp draw at random, before there is something to learn from."""


class Objectives(Section):
    """What is optimized; `metric` always is, the others where they are named."""

    metric: Direction | None = None
    """Default: the direction in which `metric` gets better."""
    latency_ms: Literal["min"] | None = None
    bytes: Literal["min"] | None = None

    @property
    def of_files(self) -> tuple[str, ...]:
        """The objectives that only a written file has."""
        return tuple(name for name in ("latency_ms", "bytes") if getattr(self, name) is not None)


class Pbt(Section):
    """Population-based training (Jaderberg et al. 2017): `trials` members train side by side in generations."""

    interval_epochs: int = Field(default=1, ge=1, le=100_000)
    """Evaluations of a generation."""
    quantile: float = Field(default=0.25, gt=0.0, le=0.5)
    """After each, so many of the worst take over the training of so many of the best, and its values."""
    resample: float = Field(default=0.25, ge=0.0, le=1.0)
    """Probability that a value which was taken over is drawn anew; else it is multiplied or divided by `factor`."""
    factor: float = Field(default=1.2, gt=1.0, le=10.0)


class Search(Section):
    trials: int = Field(default=16, ge=1, le=1_000_000)
    algorithm: Algorithm = "tpe"
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = "asha"
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs that every trial gets before the scheduler may stop it."""
    pbt: Pbt = Pbt()
    mode: Literal["staged", "joint"] = "staged"
    compress_trials: int | None = Field(default=None, ge=1, le=1_000_000)
    """In staged mode, trials of the compression keys on each winner; default: half of `trials`."""
    winners: int = Field(default=1, ge=1, le=100)
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at a time; default: as many as the free resources hold."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    space: dict[str, Dimension] = Field(min_length=1)
    objectives: Objectives = Objectives()

    @model_validator(mode="after")
    def _consistent(self) -> "Search":
        if self.winners > self.trials:
            raise illegal(
                f"winners ({self.winners}) can't exceed trials ({self.trials})",
                f"1 to {self.trials}",
                at="winners",
            )
        problem = space_problem(self.space) or self._split_condition() or self._beyond_the_algorithm()
        if self.scheduler == "pbt":
            problem = problem or self._beyond_a_population()
        if problem is not None:
            raise problem
        if self.phases() == ("train",) and self.objectives.of_files:
            name = self.objectives.of_files[0]
            raise illegal(
                f"a search of training keys alone, in staged mode, makes no files whose {name} could be measured",
                "metric; or mode joint, or compression keys in the space",
                at=f"objectives.{name}",
            )
        return self

    def _split_condition(self) -> PydanticCustomError | None:
        """A condition across the two phases of a staged search could never be looked at."""
        if self.mode == "joint":
            return None
        for part in self.split_space():
            for key, dimension in part.items():
                for parent in dimension.conditions:
                    if parent not in part:
                        message = f"{key} depends on {parent}, which another phase of a staged search sets"
                        return illegal(message, "mode joint", at=f"space.{key}.when")
        return None

    def _beyond_a_population(self) -> PydanticCustomError | None:
        """What can't be changed while a model trains, or can't be taken over by another member."""
        if self.mode == "joint":
            reason = "pbt searches trainings, and a joint trial is more than one: its files have no generations"
            return illegal(reason, "mode staged, or another scheduler", at="mode")
        if self.trials < 2:
            return illegal("a population has at least two members", "2 or more", at="trials")
        train, _ = self.split_space()
        if not train:
            return illegal("pbt needs a training key in the space", ", ".join(MUTABLE), at="scheduler")
        for key, dimension in train.items():
            if key not in MUTABLE:
                near = difflib.get_close_matches(key, MUTABLE, n=1)
                return illegal(
                    f"pbt changes values in mid-training, and {key} can't change then",
                    ", ".join(MUTABLE) + (f"; did you mean {near[0]!r}?" if near else ""),
                    at=f"space.{key}",
                )
            if dimension.when:
                return illegal("pbt takes over all values of a member, and knows no conditions", at=f"space.{key}.when")
            zero = 0 in (dimension.choice or dimension.bounds or ())
            if zero and key in APART_AT_ZERO:
                reason = f"at 0 {APART_AT_ZERO[key]}, so that a member with another value can't go on from there"
                return illegal(reason, "values above 0", at=f"space.{key}")
        return None

    def _beyond_the_algorithm(self) -> PydanticCustomError | None:
        """What the algorithm would pass over in silence, drawing at random instead."""
        name = self.algorithm
        if name == "grid":
            endless = [key for key, dimension in self.space.items() if not dimension.countable]
            if endless:
                return illegal(
                    f"a grid needs countable dimensions, and {', '.join(endless)} is continuous",
                    f"choice, or int or uniform with a step, with up to {MAX_GRID_VALUES} values",
                    at="space",
                )
            if (combinations := Grid(self.space).combinations) > MAX_COMBINATIONS:
                return illegal(
                    f"a grid lists the values that others depend on (when): {combinations:,} combinations are too many",
                    f"at most {MAX_COMBINATIONS:,}, or another algorithm",
                    at="space",
                )
        if name == "cmaes":
            if choices := [key for key, dimension in self.space.items() if dimension.choice is not None]:
                return illegal(
                    f"cmaes adapts a normal distribution, and {', '.join(choices)} is a choice, which has none",
                    "tpe, gp, nsga2, qmc, random or grid, or numbers alone",
                    at="algorithm",
                )
            if self.objectives.of_files and self.phases() != ("train",):
                named = ", ".join(("metric", *self.objectives.of_files))
                return illegal(
                    f"cmaes has one objective, and these are several: {named}",
                    "tpe, gp, nsga2, qmc, random or grid, or the metric alone",
                    at="algorithm",
                )
        if name not in CONDITIONAL_ALGORITHMS and is_conditional(self.space):
            return illegal(
                f"{name} would draw keys with a condition (when) at random, and learn nothing of them",
                ", ".join(CONDITIONAL_ALGORITHMS),
                at="algorithm",
            )
        return None

    def phases(self) -> tuple[Phase, ...]:
        """The searches that are run one after another."""
        if self.mode == "joint":
            return ("joint",)
        train, compress = self.split_space()
        phases: tuple[Phase, ...] = ("train",) if train else ()
        return (*phases, "compress") if compress else phases

    def dimensions(self, phase: Phase) -> dict[str, Dimension]:
        """The part of the space that a phase searches."""
        train, compress = self.split_space()
        return {"train": train, "compress": compress, "joint": self.space}[phase]

    def num_trials(self, phase: Phase) -> int:
        """How many trials a phase has; a grid is not larger than its points."""
        wanted = self._wanted(phase)
        if self.algorithm == "grid":
            return min(wanted, Grid(self.dimensions(phase)).size)
        return wanted

    def _wanted(self, phase: Phase) -> int:
        if phase == "compress" and len(self.phases()) > 1:
            return self.compress_trials or -(-self.trials // 2)
        return self.trials

    def population(self, phase: Phase) -> int:
        """Trials of a generation: as many as Optuna's NSGA-II has, fewer where five generations would not fit;
        for CMA-ES, Hansen's 4 + 3 ln(dimensions)."""
        if self.algorithm == "cmaes":
            return 4 + math.floor(3 * math.log(len(self.dimensions(phase))))
        return max(4, min(50, self.num_trials(phase) // 5))

    def remarks(self, evaluations: int | None = None) -> list[str]:
        """What is legal, and may not be what was meant.

        Args:
            evaluations: how often a training looks at validation, where that is known.
        """
        found = []
        if self.scheduler == "pbt":
            found += self._remarks_on_the_population(evaluations)
        schedules = self.scheduler not in ("none", "pbt") and self.phases()[0] != "compress"
        if evaluations is not None and schedules and evaluations <= self.grace_epochs:
            times = "once" if evaluations == 1 else f"{evaluations} times"
            found.append(
                f"a training looks at validation {times}, and the grace is {self.grace_epochs}: "
                f"the scheduler {self.scheduler} will stop no trial"
            )
        for phase in self.phases():
            trials = self.num_trials(phase)
            of = f" of the phase {phase}" if len(self.phases()) > 1 else ""
            if self.algorithm == "grid" and (size := Grid(self.dimensions(phase)).size) > trials:
                found.append(f"the grid{of} has {size} points, of which {trials} are tried, drawn evenly at random")
            if self.algorithm in ("tpe", "gp") and trials <= STARTUP_TRIALS:
                found.append(
                    f"{self.algorithm} draws its first {STARTUP_TRIALS} trials at random: "
                    f"all {trials} trials{of} are random ones"
                )
            if self.algorithm in ("nsga2", "cmaes") and trials <= (size := self.population(phase)):
                found.append(
                    f"a generation of {self.algorithm} has {size} trials: all {trials} trials{of} belong to the first, "
                    "which has nothing to learn from"
                )
        return found

    def _remarks_on_the_population(self, evaluations: int | None) -> list[str]:
        found = []
        if evaluations is not None and evaluations <= self.pbt.interval_epochs:
            found.append(
                f"a training has {evaluations} evaluations, and a generation of pbt {self.pbt.interval_epochs}: "
                "there is one generation, and no member takes over another's training"
            )
        if self.algorithm not in ("random", "grid", "qmc"):
            found.append(f"pbt draws all its members before any is trained: {self.algorithm} draws them at random")
        return found

    def split_space(self) -> tuple[dict[str, Dimension], dict[str, Dimension]]:
        """The dimensions that affect training, and those that only affect compression."""
        compress = {key: dim for key, dim in self.space.items() if key.startswith("compress.")}
        train = {key: dim for key, dim in self.space.items() if key not in compress}
        return train, compress


MUTABLE = (
    "train.optimizer.lr",
    "train.optimizer.weight_decay",
    "train.optimizer.momentum",
    "train.optimizer.eps",
    "train.label_smoothing",
    "train.gradient_clip",
    "model.args.dropout",
)
"""What a training may go on with under another value: everything else shapes the model, the data or their order."""

APART_AT_ZERO = {
    "train.optimizer.momentum": "the optimizer keeps no momentum",
    "model.args.dropout": "the model has no layer for it",
}

SEARCHABLE_PREFIXES = ("train.", "model.args.", "compress.prune.", "compress.pack.", "data.normalize")
"""Everything else names where the job runs or what it is asked for, and is no hyperparameter."""

UNSEARCHABLE = (
    "train.epochs",
    "train.steps",
    "train.loss",
    "train.checkpoint.every_steps",
    "train.checkpoint.keep",
    "train.seed",
)
"""Keys below those prefixes that would make trials incomparable, or that change nothing."""
