"""From values to positions, and the round values that an axis is marked with."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Label = Callable[[float], str]
Tick = tuple[float, str]


class Scale(Protocol):
    """One axis: where a value lies, and its ticks as (position, label)."""

    def position(self, value: float, /) -> float: ...

    def ticks(self) -> list[Tick]: ...


@dataclass(frozen=True)
class Linear:
    """`low` … `high` onto `start` … `end`."""

    low: float
    high: float
    start: float
    end: float
    label: Label | None = None
    """Default: as many decimals as the step needs."""
    num_ticks: int = 5
    whole: bool = False
    """Whether only integers may be marked."""
    percent: bool = False
    """Whether values are shares, to be shown in percent."""

    def position(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        values, step = nice_values(self.low, self.high, self.num_ticks, self.whole)
        label = self.label or (percent_label(step) if self.percent else decimal_label(step))
        return [(self.position(value), label(value)) for value in values]


@dataclass(frozen=True)
class Log:
    """Like Linear, in the logarithm; `low` must be above 0."""

    low: float
    high: float
    start: float
    end: float
    label: Label | None = None
    num_ticks: int = 6

    def position(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[Tick]:
        label = self.label or power_label
        return [(self.position(value), label(value)) for value in self._values()]

    def _values(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        slack = 1 + 1e-9
        for mantissas in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**decade for decade in decades for m in mantissas]
            within = [value for value in values if self.low / slack <= value <= self.high * slack]
            if len(within) <= self.num_ticks:
                if len(within) < 2:
                    return nice_values(self.low, self.high, self.num_ticks)[0]
                return within
        return within[:: math.ceil(len(within) / self.num_ticks)]


@dataclass(frozen=True)
class Category:
    """Names at even distances; a value is an index into them."""

    names: Sequence[str]
    start: float
    end: float

    def position(self, value: float) -> float:
        if len(self.names) == 1:
            return (self.start + self.end) / 2
        return self.start + (self.end - self.start) * value / (len(self.names) - 1)

    def ticks(self) -> list[Tick]:
        return [(self.position(index), name) for index, name in enumerate(self.names)]


def nice_values(low: float, high: float, count: int, whole: bool = False) -> tuple[list[float], float]:
    """About `count` round values within the range, and the step between them (1, 2 or 5 times a power of ten).

    >>> nice_values(0.0, 9.7, 5)
    ([0.0, 2.0, 4.0, 6.0, 8.0], 2.0)
    """
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)], step


def linear(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    label: Label | None = None,
    num_ticks: int = 5,
    whole: bool = False,
    percent: bool = False,
    pad: float = 0.06,
) -> Linear:
    """A linear scale around the values, with some air; one single value gets air too."""
    low, high = min(values), max(values)
    air = (high - low) * pad or abs(high) * 0.1 or 0.5
    return Linear(low - air, high + air, start, end, label, num_ticks, whole, percent)


def by_spread(
    values: Sequence[float], start: float, end: float, *, label: Label | None = None, pad: float = 0.06
) -> Linear | Log:
    """Logarithmic where the values are positive and lie more than a factor of 5 apart, else linear."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 5:
        air = (high / low) ** pad
        return Log(low / air, high * air, start, end, label)
    return linear(values, start, end, label=label, pad=pad)


def axis_name(name: str, scale: Scale) -> str:
    """The name, and whether the axis is logarithmic."""
    return f"{name}, log scale" if isinstance(scale, Log) else name


def decimal_label(step: float) -> Label:
    """Labels with as many decimals as the step between the ticks needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if decimals > 5 or step >= 1e6:
        return power_label
    return lambda value: f"{value:.{decimals}f}".replace("-", "−")


def percent_label(step: float) -> Label:
    """Like decimal_label, for shares shown in percent."""
    inner = decimal_label(step * 100)
    return lambda value: f"{inner(value * 100)} %"


def compact_label(form: Callable[[float], str]) -> Label:
    """Labels by `form` without trailing zeros: `20.0 KB` becomes `20 KB`."""
    return lambda value: re.sub(r"(\d)\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)", r"\1\2", form(value))


def power_label(value: float) -> str:
    """Short, over many decades, to three digits: `1e−4`, `2.79e−5`, `0.03`, `200`."""
    if value and not 0.001 <= abs(value) < 100_000:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:.0f}".replace("-", "−")


def thinned(ticks: list[Tick], room: Callable[[str], float]) -> list[Tick]:
    """The ticks whose labels, `room` wide each and centred, do not run into one another."""
    kept: list[Tick] = []
    for stride in range(1, len(ticks) + 1):
        kept = ticks[::stride]
        widths = [room(label) for _, label in kept]
        if all(kept[i + 1][0] - kept[i][0] >= (widths[i] + widths[i + 1]) / 2 for i in range(len(kept) - 1)):
            break
    return kept
