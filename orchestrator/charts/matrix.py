"""A heat map of counts: rows are what is true, columns what was predicted."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.charts import svg

_LABEL_LENGTH = 14
_MAX_LABELS = 26
_MIN_CELL_WITH_COUNT = 22.0


def heat_map(names: Sequence[str], counts: Sequence[Sequence[float]], *, label: str, width: float) -> Markup:
    """A confusion matrix `counts[true][predicted]`; shades go with the share of a row's sum.

    The diagonal has a colour of its own, so that errors stand out. Shades follow the square root of the
    share: 2 % of a class is to be seen. Empty cells are not drawn.
    """
    size = len(names)
    stride = math.ceil(size / _MAX_LABELS)
    shown = {index: svg.shorten(names[index], _LABEL_LENGTH) for index in range(0, size, stride)}
    widest = max(svg.text_width(words) for words in shown.values())
    left, top = widest + 34, widest * 0.72 + 44
    cell = min(44.0, (width - left - widest * 0.4 - 6) / size)
    side = cell * size
    cells = []
    for row, values in enumerate(counts):
        total = sum(values)
        for column, count in enumerate(values):
            if count > 0:
                cells.append(_cell(names, row, column, count, count / total, left, top, cell))
    parts = [
        svg.tag("rect", x=left, y=top, width=side, height=side, class_="matrix-ground"),
        *cells,
        *(svg.text(left - 7, top + cell * (index + 0.5) + 4, words, "tick", "end") for index, words in shown.items()),
        *(
            svg.tag(
                "text",
                words,
                class_="tick",
                transform=f"translate({left + cell * (index + 0.5) + 4:.1f} {top - 7:.1f}) rotate(-45)",
            )
            for index, words in shown.items()
        ),
        svg.text(left, 14, "predicted", "axis-name"),
        svg.tag(
            "text",
            "true",
            class_="axis-name",
            text_anchor="end",
            transform=f"translate(14 {top:.1f}) rotate(-90)",
        ),
    ]
    return svg.canvas(left + side + widest * 0.72 + 6, top + side + 6, label, *parts)


def _cell(
    names: Sequence[str], row: int, column: int, count: float, share: float, left: float, top: float, cell: float
) -> Markup:
    opacity = max(0.06, math.sqrt(share))
    x, y = left + column * cell, top + row * cell
    gap = 1.0 if cell > 8 else 0.0
    tip = (
        f"{count:.0f} of “{names[row]}” predicted right ({100 * share:.1f} %)"
        if row == column
        else f"{count:.0f} of “{names[row]}” predicted as “{names[column]}” ({100 * share:.1f} %)"
    )
    parts = [
        svg.title(tip),
        svg.tag(
            "rect",
            x=x,
            y=y,
            width=cell - gap,
            height=cell - gap,
            class_="cell right" if row == column else "cell wrong",
            fill_opacity=opacity,
        ),
    ]
    if cell >= _MIN_CELL_WITH_COUNT:
        parts.append(
            svg.text(
                x + cell / 2,
                y + cell / 2 + 4,
                f"{count:.0f}",
                "count inverse" if opacity > 0.6 else "count",
                "middle",
            )
        )
    return svg.group(*parts)
