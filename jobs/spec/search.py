"""`search:` which keys of the spec are searched, by what algorithm, for which objectives."""

from typing import Literal

from pydantic import Field, model_validator

from jobs.section import Section, illegal, not_supported_yet

Value = bool | int | float | str


class Dimension(Section):
    """The values one key may take: exactly one of the kinds."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = Field(default=None, alias="int")
    int_loguniform: tuple[int, int] | None = Field(default=None, alias="logint")
    choice: tuple[Value, ...] | None = None

    @model_validator(mode="after")
    def _legal(self) -> "Dimension":
        kinds = "uniform: [low, high], loguniform: [low, high], int: [low, high], logint: [low, high], choice: [values]"
        if sum(value is not None for _, value in self) != 1:
            raise illegal("a search dimension names exactly one kind", kinds)
        if self.choice is not None:
            if not self.choice:
                raise illegal("a choice without values can't be searched", "at least one value")
            if len({(type(v), v) for v in self.choice}) != len(self.choice):
                raise illegal("a choice lists the same value twice", "each value once")
        if self.bounds is not None:
            low, high = self.bounds
            if low >= high:
                raise illegal(f"the range is empty: low {low} is not below high {high}", "low < high")
            if (self.loguniform or self.int_loguniform) and low <= 0:
                raise illegal(f"a logarithmic range can't begin at {low}", "low > 0")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.uniform or self.loguniform or self.int_uniform or self.int_loguniform

    @property
    def probes(self) -> tuple[Value, ...]:
        """The ends of a range, and values within that are none of the round ones: legal there, legal throughout."""
        if (whole := self.int_uniform or self.int_loguniform) is not None:
            low, high = whole
            return tuple(dict.fromkeys((low, high, low + 1, (low + high) // 2)))
        if (range_ := self.uniform or self.loguniform) is not None:
            low_end, high_end = range_
            return low_end, high_end, low_end + (high_end - low_end) * 0.381966
        return self.choice or ()

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All the values, where they are few enough to list: choices, and integers up to 1,000 of them."""
        if self.choice is not None:
            return self.choice
        if self.int_uniform is not None and self.int_uniform[1] - self.int_uniform[0] < 1000:
            return tuple(range(self.int_uniform[0], self.int_uniform[1] + 1))
        return None


Direction = Literal["min", "max"]
Phase = Literal["train", "compress", "joint"]


class Objectives(Section):
    """What is optimized; `metric` always is, the others where they are named."""

    metric: Direction | None = None
    """Default: the direction in which `metric` gets better."""
    latency_ms: Literal["min"] | None = None
    bytes: Literal["min"] | None = None


class Search(Section):
    trials: int = Field(default=16, ge=1, le=1_000_000)
    algorithm: Literal["random", "grid", "tpe", "gp", "nsga2", "cmaes", "qmc"] = "tpe"
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = "asha"
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs that every trial gets before the scheduler may stop it."""
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
        if self.algorithm in ("gp", "nsga2", "cmaes", "qmc"):
            raise not_supported_yet(f"search algorithm {self.algorithm}", at="algorithm")
        if self.scheduler in ("hyperband", "median", "pbt"):
            raise not_supported_yet(f"search scheduler {self.scheduler}", at="scheduler")
        if self.winners > self.trials:
            raise illegal(
                f"winners ({self.winners}) can't exceed trials ({self.trials})",
                f"1 to {self.trials}",
                at="winners",
            )
        if self.algorithm == "grid":
            endless = [key for key, dimension in self.space.items() if dimension.grid is None]
            if endless:
                raise illegal(
                    f"a grid needs countable dimensions, and {', '.join(endless)} is continuous",
                    "choice, or int with up to 1000 values",
                    at="space",
                )
        return self

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
        wanted = self.trials
        if phase == "compress" and len(self.phases()) > 1:
            wanted = self.compress_trials or -(-self.trials // 2)
        if self.algorithm == "grid":
            points = 1
            for dimension in self.dimensions(phase).values():
                points *= len(dimension.grid or ())
            return min(wanted, points)
        return wanted

    def split_space(self) -> tuple[dict[str, Dimension], dict[str, Dimension]]:
        """The dimensions that affect training, and those that only affect compression."""
        compress = {key: dim for key, dim in self.space.items() if key.startswith("compress.")}
        train = {key: dim for key, dim in self.space.items() if key not in compress}
        return train, compress


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
