"""Charts on two axes: lines over time, and points with labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from orchestrator.charts import svg
from orchestrator.charts.scales import Scale, thinned

Point = tuple[float, float]


@dataclass(frozen=True)
class Area:
    """A chart's size and the margins around its plotting area, in user units."""

    width: float
    height: float
    left: float = 52.0
    right: float = 14.0
    top: float = 26.0
    bottom: float = 42.0

    @property
    def x_range(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def y_range(self) -> tuple[float, float]:
        """From the bottom up, so that larger values are higher."""
        return self.height - self.bottom, self.top


HALF = Area(540, 340)
"""Half the page's width."""
HALF_NAMED = Area(540, 340, right=72.0)
"""With room for names at the ends of lines."""
THIRD = Area(360, 230)


@dataclass(frozen=True)
class Series:
    """One line. `tips` are shown over its points; `dots` marks them."""

    points: Sequence[Point]
    class_: str
    tips: Sequence[str] = ()
    dots: bool = False
    key: str | None = None
    """Elements of one key light up together, throughout the page."""
    steps: bool = False
    """Whether a value holds until the next point."""


@dataclass(frozen=True)
class Mark:
    """One point, with an optional error bar, name and ring."""

    x: float
    y: float
    class_: str
    tip: str
    shape: str = "circle"
    """circle, square, diamond, triangle, wedge (a triangle upside down) or cross: never told apart by colour alone."""
    size: float = 4.5
    label: str = ""
    ring: bool = False
    y_error: tuple[float, float] | None = None
    key: str | None = None


@dataclass(frozen=True)
class Rule:
    """A line across the whole plotting area at one value, with words on it."""

    value: float
    label: str
    across: str
    """x: a vertical line at an x value; y: a horizontal one."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass
class _Labels:
    """Where there is already something, so that names are put elsewhere."""

    taken: list[tuple[Box, float]] = field(default_factory=list)
    """Boxes, and how bad it is to cover them."""

    def block(self, points: Sequence[Point], weight: float) -> None:
        """Keeps names off a line, taken as small boxes along it."""
        for (x1, y1), (x2, y2) in pairwise(points):
            pieces = max(1, round(max(abs(x2 - x1), abs(y2 - y1)) / 8))
            for piece in range(pieces):
                ends = [(x1 + (x2 - x1) * t / pieces, y1 + (y2 - y1) * t / pieces) for t in (piece, piece + 1)]
                (left, right), (top, bottom) = (sorted(end[axis] for end in ends) for axis in (0, 1))
                self.taken.append(((left - 2, top - 2, right + 2, bottom + 2), weight))

    def place(self, x: float, y: float, words: str, gap: float, area: Area, bold: bool) -> tuple[float, float, str]:
        """The least crowded of the places around a point: (x, baseline, anchor)."""
        width, height = svg.text_width(words, bold=bold), svg.FONT_SIZE
        candidates = [
            (x + gap, y + 4, "start", x + gap),
            (x - gap, y + 4, "end", x - gap - width),
            (x, y - gap - 2, "middle", x - width / 2),
            (x, y + gap + 10, "middle", x - width / 2),
            (x + gap, y - gap, "start", x + gap),
            (x - gap, y - gap, "end", x - gap - width),
            (x + gap, y + gap + 8, "start", x + gap),
            (x - gap, y + gap + 8, "end", x - gap - width),
            *(
                (x + side * gap, y + shift, "start" if side > 0 else "end", x + gap if side > 0 else x - gap - width)
                for shift in (-20, 28, -34, 42)
                for side in (1, -1)
            ),
        ]

        def crowding(candidate: tuple[float, float, str, float]) -> float:
            _, baseline, _, left = candidate
            box = (left, baseline - height + 2, left + width, baseline + 3)
            inside = (area.left, area.top, area.width - area.right, area.height - area.bottom)
            outside = (width * (height + 1)) - _overlap(box, inside)
            # Further away costs a little, and running out of the plot a lot.
            distance = abs(baseline - 4 - y)
            covered = sum(weight * _overlap(box, other) for other, weight in self.taken)
            return covered + 5 * max(0.0, outside) + distance

        best = min(candidates, key=crowding)
        self.taken.append(((best[3], best[1] - height + 2, best[3] + width, best[1] + 3), 2.0))
        return best[0], best[1], best[2]


def line_chart(
    area: Area,
    x: Scale,
    y: Scale,
    series: Sequence[Series],
    *,
    label: str,
    x_name: str,
    y_name: str,
    rules: Sequence[Rule] = (),
    marks: Sequence[Mark] = (),
    ends: Sequence[Mark] = (),
) -> Markup:
    """Lines over a common x, then the marks on top of them.

    Args:
        ends: the ends of some lines; their names stand in the margin to the right, one below the other.
    """
    parts = [axes(area, x, y, x_name, y_name), *(_rule(area, x, y, rule) for rule in rules)]
    lines = []
    for one in series:
        placed = [(x.position(px), y.position(py)) for px, py in one.points]
        drawn = _stairs(placed) if one.steps else placed
        lines.append(drawn)
        parts.append(svg.path(drawn, f"line {one.class_}", data_key=one.key))
        for index, (px, py) in enumerate(placed):
            tip = [svg.title(one.tips[index])] if one.tips else []
            if one.dots or (len(placed) == 1 and not one.steps):
                parts.append(svg.tag("circle", cx=px, cy=py, r=2.6, class_=f"dot {one.class_}"))
            if tip:
                parts.append(svg.tag("circle", *tip, cx=px, cy=py, r=7, class_="hit", data_key=one.key))
    parts += [*_marks(area, x, y, marks, lines), *_ends(area, x, y, ends)]
    return svg.canvas(area.width, area.height, label, *parts)


def scatter_chart(
    area: Area,
    x: Scale,
    y: Scale,
    marks: Sequence[Mark],
    *,
    label: str,
    x_name: str,
    y_name: str,
    front: Sequence[Point] = (),
    rules: Sequence[Rule] = (),
) -> Markup:
    """Points, the Pareto front through some of them as stairs, and the budget's lines.

    x is something to minimise: what the front reaches at one point it also reaches with more.
    """
    parts = [axes(area, x, y, x_name, y_name), *(_rule(area, x, y, rule) for rule in rules)]
    lines: list[list[Point]] = []
    if front:
        placed = [(x.position(px), y.position(py)) for px, py in sorted(front)]
        lines.append([*_stairs(placed), (area.width - area.right, placed[-1][1])])
        parts.append(svg.path(lines[0], "line front"))
    parts += _marks(area, x, y, marks, lines)
    return svg.canvas(area.width, area.height, label, *parts)


def axes(area: Area, x: Scale, y: Scale, x_name: str, y_name: str) -> Markup:
    """Grid lines, tick labels and the axes' names: y's above its axis, x's below at the right."""
    (left, right), (bottom, top) = area.x_range, area.y_range
    parts = []
    for position, words in y.ticks():
        parts.append(svg.line(left, position, right, position, "grid"))
        parts.append(svg.text(left - 8, position + 4, words, "tick", "end"))
    parts.append(svg.line(left, bottom, right, bottom, "axis"))
    for position, words in thinned(x.ticks(), lambda words: svg.text_width(words) + 10):
        parts.append(svg.line(position, bottom, position, bottom + 4, "axis"))
        half = svg.text_width(words) / 2
        inside = min(max(position, half + 2), area.width - half - 2)
        parts.append(svg.text(inside, bottom + 18, words, "tick", "middle"))
    parts.append(svg.text(0, top - 12, y_name, "axis-name"))
    parts.append(svg.text(right, bottom + 36, x_name, "axis-name", "end"))
    return svg.group(*parts, class_="axes", aria_hidden="true")


def shape(kind: str, x: float, y: float, size: float, class_: str, *children: Markup, key: str | None) -> Markup:
    """One of the shapes that Mark names, of about equal weight."""
    if kind == "circle":
        return svg.tag("circle", *children, cx=x, cy=y, r=size, class_=class_, data_key=key)
    if kind == "cross":
        arm = 2 * size
        d = f"M{x - size:.1f} {y - size:.1f}l{arm:.1f} {arm:.1f}m0 {-arm:.1f}l{-arm:.1f} {arm:.1f}"
        return svg.tag("path", *children, d=d, class_=f"{class_} stroke-only", data_key=key)
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
        "triangle": [(0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
        "wedge": [(0.0, 1.15), (-1.1, -0.85), (1.1, -0.85)],
    }[kind]
    steps = "L".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in corners)
    return svg.tag("path", *children, d=f"M{steps}Z", class_=class_, data_key=key)


def _marks(area: Area, x: Scale, y: Scale, marks: Sequence[Mark], lines: Sequence[Sequence[Point]]) -> list[Markup]:
    """Error bars, then the points, then their names, which keep off one another and off the lines."""
    labels = _Labels()
    for points in lines if any(mark.label for mark in marks) else ():
        labels.block(points, 0.8)
    placed = [(x.position(mark.x), y.position(mark.y), mark) for mark in marks]
    for px, py, mark in placed:
        around = mark.size + 3
        labels.taken.append(((px - around, py - around, px + around, py + around), 2.0))
    bars, drawn, names = [], [], []
    for px, py, mark in placed:
        if mark.y_error is not None:
            ends = [min(max(y.position(end), area.top), area.height - area.bottom) for end in mark.y_error]
            bars.append(svg.line(px, ends[0], px, ends[1], f"error {mark.class_}"))
            labels.block([(px, ends[0]), (px, ends[1])], 0.25)
        if mark.ring:
            drawn.append(svg.tag("circle", cx=px, cy=py, r=mark.size + 5, class_="ring"))
        drawn.append(shape(mark.shape, px, py, mark.size, f"mark {mark.class_}", svg.title(mark.tip), key=mark.key))
    # What is selected is named first, and so gets the best place.
    for px, py, mark in sorted(placed, key=lambda item: not item[2].ring):
        if mark.label:
            gap = mark.size + (9 if mark.ring else 5)
            lx, ly, anchor = labels.place(px, py, mark.label, gap, area, mark.ring)
            if abs(ly - 4 - py) > 14 and anchor != "middle":
                names.append(svg.line(px, py, lx, ly - 4, "leader"))
            names.append(svg.text(lx, ly, mark.label, "name selected" if mark.ring else "name", anchor))
    return [*bars, *drawn, *names]


def _ends(area: Area, x: Scale, y: Scale, marks: Sequence[Mark]) -> list[Markup]:
    """Marks, with their names beside the plot in the order of their heights and no closer than a line of text."""
    placed = sorted(((x.position(mark.x), y.position(mark.y), mark) for mark in marks), key=lambda item: item[1])
    pitch, (bottom, _) = svg.FONT_SIZE + 2, area.y_range
    heights: list[float] = []
    for _, py, _ in placed:
        heights.append(max(py, heights[-1] + pitch) if heights else py)
    # Names that ran over the lower end move up, and push those above them.
    for index in reversed(range(len(heights))):
        lowest = bottom if index + 1 == len(heights) else heights[index + 1] - pitch
        heights[index] = min(heights[index], lowest)
    parts, right = [], area.width - area.right
    for (px, py, mark), height in zip(placed, heights, strict=True):
        parts.append(svg.path([(px, py), (max(px, right), py), (right + 9, height)], "line leader"))
        name = "name selected" if mark.ring else "name"
        parts.append(svg.text(right + 12, height + 4, svg.shorten(mark.label, 10), name))
    parts += [
        shape(mark.shape, px, py, mark.size, f"mark {mark.class_}", svg.title(mark.tip), key=mark.key)
        for px, py, mark in placed
    ]
    return parts


def _rule(area: Area, x: Scale, y: Scale, rule: Rule) -> Markup:
    (left, right), (bottom, top) = area.x_range, area.y_range
    if rule.across == "y":
        at = y.position(rule.value)
        if not top <= at <= bottom:
            return Markup("")
        return svg.group(
            svg.line(left, at, right, at, "budget"), svg.text(right, at - 5, rule.label, "budget-name", "end")
        )
    at = x.position(rule.value)
    if not left <= at <= right:
        return Markup("")
    anchor, offset = ("end", -5) if at > (left + right) / 2 else ("start", 5)
    return svg.group(
        svg.line(at, top, at, bottom, "budget"),
        svg.text(at + offset, bottom - 7, rule.label, "budget-name", anchor),
    )


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The points with a corner between each two: a value holds until the next."""
    stairs: list[Point] = []
    for point in points:
        if stairs:
            stairs.append((point[0], stairs[-1][1]))
        stairs.append(point)
    return stairs


def _overlap(a: Box, b: Box) -> float:
    """Common area of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
