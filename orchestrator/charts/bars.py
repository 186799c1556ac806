"""Bars from left to right, one a name, several series side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.charts import svg

_THICK, _GAP, _BETWEEN = 12.0, 3.0, 13.0
_TOP, _BOTTOM = 6.0, 8.0


@dataclass(frozen=True)
class Bars:
    """One name and its values, in the order of the series; `title` is the whole name."""

    name: str
    values: Sequence[float]
    title: str = ""


def bar_chart(
    rows: Sequence[Bars],
    series: Sequence[tuple[str, str]],
    *,
    width: float,
    label: str,
    form: Callable[[float], str],
) -> Markup:
    """Values from 0 up, each with its figure at the bar's end.

    Args:
        series: (name, class) of each; the name is told by the pointer over a bar.
    """
    left = min(width * 0.42, 12 + max(svg.text_width(row.name) for row in rows))
    right = 12 + max(svg.text_width(form(value)) for row in rows for value in row.values)
    most = max(value for row in rows for value in row.values) or 1.0
    pitch = len(series) * (_THICK + _GAP) - _GAP + _BETWEEN
    parts = []
    for index, row in enumerate(rows):
        top = _TOP + index * pitch
        middle = top + (pitch - _BETWEEN) / 2
        room = int((left - 12) / 6.4)
        parts.append(
            svg.tag(
                "text",
                svg.shorten(row.name, room),
                svg.title(row.title or row.name),
                x=left - 8,
                y=middle + 4,
                class_="label",
                text_anchor="end",
            )
        )
        for place, (value, (name, class_)) in enumerate(zip(row.values, series, strict=True)):
            y = top + place * (_THICK + _GAP)
            long = max(1.0, (width - left - right) * value / most)
            tip = svg.title(f"{row.title or row.name}\n{name}: {form(value)}")
            parts.append(svg.tag("rect", tip, x=left, y=y, width=long, height=_THICK, class_=f"bar-mark {class_}"))
            parts.append(svg.text(left + long + 6, y + _THICK - 2, form(value), "tick"))
    height = _TOP + len(rows) * pitch - _BETWEEN + _BOTTOM
    parts.append(svg.line(left, _TOP - 4, left, height - _BOTTOM + 4, "axis"))
    return svg.canvas(width, height, label, *parts)
