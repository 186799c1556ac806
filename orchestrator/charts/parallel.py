"""Parallel coordinates: one upright axis a dimension, one line a trial (Inselberg 1985)."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.charts import svg
from orchestrator.charts.scales import Scale

HEIGHT = 330.0
TOP, BOTTOM = 44.0, HEIGHT - 22.0
"""Where the axes end; scales are made for BOTTOM … TOP."""

_PITCH = 132.0
_MANY = 120
"""Strands beyond this are drawn fainter."""
_LEFT, _RIGHT = 64.0, 64.0


@dataclass(frozen=True)
class Dimension:
    name: str
    scale: Scale
    title: str = ""
    """The whole name, where `name` is a part of it."""


@dataclass(frozen=True)
class Strand:
    """One line: a value for each dimension, None where it has none and the line has a gap."""

    values: Sequence[float | None]
    class_: str
    tip: str
    key: str


def parallel_coordinates(
    dimensions: Sequence[Dimension], strands: Sequence[Strand], *, label: str, width: float
) -> Markup:
    """The strands in the order given, later ones on top; wider than `width` where the axes need it."""
    width = max(width, _LEFT + _RIGHT + _PITCH * (len(dimensions) - 1))
    pitch = (width - _LEFT - _RIGHT) / max(1, len(dimensions) - 1)
    places = [_LEFT + pitch * index for index in range(len(dimensions))]
    drawn = [_strand(strand, dimensions, places) for strand in strands]
    axes = [_axis(dimension, x, pitch) for dimension, x in zip(dimensions, places, strict=True)]
    return svg.canvas(
        width,
        HEIGHT,
        label,
        svg.group(*drawn, class_="strands many" if len(drawn) > _MANY else "strands"),
        *axes,
        class_="chart wide",
    )


def _strand(strand: Strand, dimensions: Sequence[Dimension], places: Sequence[float]) -> Markup:
    pieces: list[list[str]] = [[]]
    for dimension, x, value in zip(dimensions, places, strand.values, strict=True):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x:.1f} {dimension.scale.position(value):.1f}")
    steps = "".join(f"M{'L'.join(piece)}" for piece in pieces if piece)
    return svg.tag("path", svg.title(strand.tip), d=steps, class_=f"strand {strand.class_}", data_key=strand.key)


def _axis(dimension: Dimension, x: float, pitch: float) -> Markup:
    parts = [svg.line(x, TOP, x, BOTTOM, "axis")]
    for position, words in dimension.scale.ticks():
        parts.append(svg.line(x - 3, position, x + 3, position, "axis"))
        parts.append(svg.text(x + 7, position + 4, svg.shorten(words, 12), "tick halo"))
    room = int((pitch - 12) / 6.4)
    name = svg.tag(
        "text",
        svg.shorten(dimension.name, room),
        svg.title(dimension.title or dimension.name),
        x=x,
        y=TOP - 20,
        class_="axis-name strong",
        text_anchor="middle",
    )
    return svg.group(*parts, name)
