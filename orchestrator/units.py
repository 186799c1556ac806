"""Figures as people read them: sizes, times, ratios, and metrics with their changes. Pure; decimal units."""

import math
from collections.abc import Callable

from jobs.spec.job import HIGHER_IS_BETTER

PERCENT_METRICS = ("accuracy",)
"""Metrics shown in percent, and their changes in points; the others are shown as they are."""
RELATIVE_METRICS = ("log_loss", "mae", "perplexity", "rmse")
"""Metrics without a scale of their own: what a change means depends on where it starts."""


def significant(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, without an exponent where people read numbers.

    >>> significant(1234.5), significant(0.01234), significant(3e-9)
    ('1234', '0.0123', '3e-09')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    exponent = int(f"{abs(value):.{digits - 1}e}".split("e")[1])
    if not -5 <= exponent <= 6:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...], digits: int) -> str:
    size, unit = steps[-1]
    for size, unit in steps:  # noqa: B007 - the last step holds for what is smaller than all
        # What would round up to 1000 of a unit is already 1 of the next.
        if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
            break
    return f"{significant(value / size, digits)}{unit}"


def format_bytes(count: float, digits: int = 3) -> str:
    """`431144` as `431 KB`: 1 KB is 1000 bytes."""
    if count < 999.5:
        return f"{count:.0f} B"
    return _scaled(count, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " KB")), digits)


def format_ms(milliseconds: float, digits: int = 3) -> str:
    """`0.0564` (ms) as `56.4 µs`."""
    if milliseconds == 0:
        return "0 ms"
    return _scaled(milliseconds, ((1e3, " s"), (1.0, " ms"), (1e-3, " µs")), digits)


def format_count(count: float, digits: int = 3) -> str:
    """`61706` as `61.7 k`; below a thousand, the number itself."""
    if abs(count) < 999.5:
        return f"{count:.0f}" if float(count).is_integer() else significant(count, digits)
    return _scaled(count, ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")), digits)


def format_seconds(seconds: float) -> str:
    """`3725` as `1 h 2 min`, `72` as `1 min 12 s`, `4.21` as `4.2 s`, `0.0123` as `12 ms`."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "< 1 ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = whole // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def format_ratio(ratio: float) -> str:
    """`12.44` as `12.4×`; near 1 with the digits that tell it from 1."""
    if not math.isfinite(ratio):
        return "not finite"
    if ratio >= 100:
        return f"{ratio:.0f}×"
    if ratio < 1.095 and f"{ratio:.1f}" != f"{ratio:.2f}".rstrip("0"):
        return f"{ratio:.2f}×"
    return f"{ratio:.1f}×"


def format_metric(name: str, value: float, digits: int | None = None) -> str:
    """A metric's value: `93.12 %` for accuracy, four significant digits for the others."""
    if not math.isfinite(value):
        return "not finite"
    if name in PERCENT_METRICS:
        return f"{100 * value:.{2 if digits is None else digits}f} %"
    return significant(value, 4 if digits is None else digits)


def format_relative(name: str, value: float, reference: float) -> str:
    """A change in percent of the reference, ` (+1.6 %)`, for metrics whose size alone says little; else empty."""
    if name not in RELATIVE_METRICS or not reference > 0 or not math.isfinite(value / reference):
        return ""
    percent = 100 * (value / reference - 1)
    amount = significant(abs(percent), 2)
    return f" ({'±' if percent == 0 else '+' if percent > 0 else '−'}{amount} %)"


def format_amount(name: str, amount: float, digits: int = 2) -> str:
    """A difference of a metric without its sign: `0.5 points`, or `0.031`."""
    if not math.isfinite(amount):
        return "not finite"
    if name in PERCENT_METRICS:
        number = f"{100 * abs(amount):.{digits}f}".rstrip("0").rstrip(".")
        return f"{number} {'point' if number == '1' else 'points'}"
    return significant(abs(amount), digits)


def format_change(name: str, better_by: float, unit: bool = True) -> str:
    """How a metric's own value moved, signed: `−0.2 points`; `better_by` is positive when better.

    An error that fell by 0.1 is better by 0.1 and reads `−0.1`.
    """
    if not math.isfinite(better_by):
        return "not finite"
    change = better_by if name in HIGHER_IS_BETTER else -better_by
    amount = format_amount(name, change)
    if not unit:
        amount = amount.split(" ")[0]
    if not any(digit in amount for digit in "123456789"):
        return f"±{amount}"
    return f"{'+' if change > 0 else '−'}{amount}"


def format_apart(left: float, right: float, show: Callable[[float, int], str]) -> tuple[str, str]:
    """Two figures with as many digits as it takes to tell them apart (up to six)."""
    for digits in range(2, 7):
        texts = show(left, digits), show(right, digits)
        if texts[0] != texts[1]:
            return texts
    return show(left, 3), show(right, 3)
