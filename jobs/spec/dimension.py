"""One dimension of a search space: the values that a key may take, and when it is there at all."""

import math
from decimal import Decimal

from pydantic import Field, model_validator

from jobs.section import Section, illegal

Value = bool | int | float | str

MAX_GRID_VALUES = 1000
MAX_CHOICES = 1000
MAX_STEPS = 1_000_000_000


class Dimension(Section):
    """The values one key may take: exactly one of the kinds."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int_uniform: tuple[int, int] | None = Field(default=None, alias="int")
    int_loguniform: tuple[int, int] | None = Field(default=None, alias="logint")
    choice: tuple[Value, ...] | None = Field(default=None, max_length=MAX_CHOICES)
    step: float | None = Field(default=None, gt=0.0)
    """Of `uniform` and `int`: only low, low + step, … are taken."""
    when: dict[str, Value | tuple[Value, ...]] | None = Field(default=None, min_length=1)
    """Searched choices that must have one of these values; else the key is left out of the trial."""

    @model_validator(mode="after")
    def _legal(self) -> "Dimension":
        kinds = "uniform: [low, high], loguniform: [low, high], int: [low, high], logint: [low, high], choice: [values]"
        given = (self.uniform, self.loguniform, self.int_uniform, self.int_loguniform, self.choice)
        if sum(kind is not None for kind in given) != 1:
            raise illegal("a search dimension names exactly one kind", kinds)
        if self.choice is not None:
            if not self.choice:
                raise illegal("a choice without values can't be searched", "at least one value")
            if len(set(self.choice)) != len(self.choice):  # Optuna knows values by `==`, as a set does
                raise illegal("a choice lists the same value twice (1, 1.0 and true are the same)", "each value once")
        if self.bounds is not None:
            low, high = self.bounds
            if low >= high:
                raise illegal(f"the range is empty: low {low} is not below high {high}", "low < high")
            if (self.loguniform or self.int_loguniform) and low <= 0:
                raise illegal(f"a logarithmic range can't begin at {low}", "low > 0")
        if self.step is not None:
            self._check_step(self.step)
        return self

    def _check_step(self, step: float) -> None:
        bounds = self.uniform or self.int_uniform
        if bounds is None:
            raise illegal("a step goes with uniform and int", "null", at="step")
        if self.int_uniform is not None and step != int(step):
            raise illegal("the step of an int is a whole number", "a whole number", at="step")
        low, high = bounds
        if (_exact(high) - _exact(low)) / _exact(step) > MAX_STEPS:
            raise illegal(f"the range from {low} to {high} has too many steps", f"at most {MAX_STEPS:,}", at="step")
        if (_exact(high) - _exact(low)) % _exact(step):
            raise illegal(f"the range from {low} to {high} is no whole number of steps", "a divisor of it", at="step")

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.uniform or self.loguniform or self.int_uniform or self.int_loguniform

    @property
    def log(self) -> bool:
        return self.loguniform is not None or self.int_loguniform is not None

    @property
    def whole(self) -> bool:
        return self.int_uniform is not None or self.int_loguniform is not None

    @property
    def conditions(self) -> dict[str, tuple[Value, ...]]:
        """`when`, each parent with all the values that turn this key on."""
        return {
            parent: values if isinstance(values, tuple) else (values,) for parent, values in (self.when or {}).items()
        }

    @property
    def count(self) -> int | None:
        """How many values there are; None for a continuum, and for a logarithmic range, which is none to list."""
        if self.choice is not None:
            return len(self.choice)
        if self.int_uniform is not None:
            low, high = self.int_uniform
            return (high - low) // int(self.step or 1) + 1
        if self.uniform is not None and self.step is not None:
            low_end, high_end = self.uniform
            return int((_exact(high_end) - _exact(low_end)) / _exact(self.step)) + 1
        return None

    @property
    def countable(self) -> bool:
        """Whether a grid may list the values."""
        return self.count is not None and (self.choice is not None or self.count <= MAX_GRID_VALUES)

    def value(self, index: int) -> Value:
        """The value at a place of a countable dimension."""
        if self.choice is not None:
            return self.choice[index]
        if self.int_uniform is not None:
            return self.int_uniform[0] + index * int(self.step or 1)
        assert self.uniform is not None
        assert self.step is not None
        return float(_exact(self.uniform[0]) + index * _exact(self.step))

    def snapped(self, value: Value) -> Value:
        """A drawn value as one would write it: 0.3, where steps of 0.1 gave 0.30000000000000004."""
        if self.uniform is None or self.step is None:
            return value
        return self.value(round((float(value) - self.uniform[0]) / self.step))

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All the values, where they are few enough to list: choices, and up to 1,000 whole numbers or steps."""
        return tuple(self.value(index) for index in range(self.count or 0)) if self.countable else None

    @property
    def probes(self) -> tuple[Value, ...]:
        """The ends of a range, and values within that are none of the round ones: legal there, legal throughout."""
        if self.choice is not None:
            return self.choice
        if self.count is not None and self.step is not None:
            places = (0, self.count - 1, 1, self.count // 2)
            return tuple(dict.fromkeys(self.value(place) for place in places))
        assert self.bounds is not None
        low, high = self.bounds
        if self.whole:
            return tuple(dict.fromkeys((int(low), int(high), int(low) + 1, (int(low) + int(high)) // 2)))
        return low, high, low + (high - low) * 0.381966

    def at(self, share: float) -> Value:
        """The value at a share (0 to 1) of the dimension: each value has an equally long part, in logarithms if asked.

        How sequences and distributions over the unit cube become values.
        """
        share = min(max(share, 0.0), 1.0)
        if self.count is not None:
            return self.value(min(int(share * self.count), self.count - 1))
        assert self.bounds is not None
        low, high = self.bounds
        # A whole number owns what is rounded to it, the ends as much as the others.
        margin = 0.5 if self.whole else 0.0
        if self.log:
            first, last = math.log(low - margin), math.log(high + margin)
            found = math.exp(first + share * (last - first))
        else:
            found = low + share * (high - low)
        found = min(max(found, low), high)
        return round(found) if self.whole else found

    def share_of(self, value: Value) -> float:
        """Where a number lies in its range, 0 to 1: the middle of the part that `at` takes for it."""
        assert self.bounds is not None
        low, high = self.bounds
        if self.count is not None:
            return ((float(value) - low) / (self.step or 1) + 0.5) / self.count
        margin = 0.5 if self.whole else 0.0
        if self.log:
            first, last = math.log(low - margin), math.log(high + margin)
            return (math.log(float(value)) - first) / (last - first)
        return (float(value) - low) / (high - low)


def _exact(number: float) -> Decimal:
    return Decimal(str(number))
