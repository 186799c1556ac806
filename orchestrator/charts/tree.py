"""A tree from left to right, with words on its edges."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.charts import svg

_NODE_WIDTH, _NODE_HEIGHT = 236.0, 62.0
_GAP, _PITCH = 156.0, 86.0
_TRUNK = 18.0
_MARGIN = 8.0


@dataclass(frozen=True)
class Node:
    """One box. `edge` stands along the way from the parent: above the line the first, below it the others."""

    name: str
    parent: str | None
    lines: Sequence[str]
    edge: Sequence[str]
    class_: str
    tip: str
    selected: bool = False


def tree(nodes: Sequence[Node], *, label: str) -> Markup:
    """Boxes in columns by their depth; a node whose parent is unknown is a root."""
    names = {node.name for node in nodes}
    children: dict[str | None, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent if node.parent in names else None, []).append(node)

    places: dict[str, tuple[int, float]] = {}
    next_row = 0.0
    # Depth first without recursion: leaves take rows in order, parents stand at their first child's row.
    stack = [(node, 0) for node in reversed(children.get(None, []))]
    while stack:
        node, depth = stack.pop()
        places[node.name] = (depth, next_row)
        below = [child for child in children.get(node.name, []) if child.name not in places]
        stack += [(child, depth + 1) for child in reversed(below)]
        if not below:
            next_row += 1

    depth = max((place[0] for place in places.values()), default=0)
    width = 2 * _MARGIN + _NODE_WIDTH * (depth + 1) + _GAP * depth
    height = 2 * _MARGIN + _PITCH * (max(next_row, 1) - 1) + _NODE_HEIGHT + 6
    parts = []
    for node in nodes:
        if node.name in places:
            parent = places.get(node.parent) if node.parent in places and node.parent is not None else None
            parts.append(_drawn(node, places[node.name], parent))
    return svg.canvas(width, height, label, *parts, class_="chart wide tree")


def _drawn(node: Node, place: tuple[int, float], parent: tuple[int, float] | None) -> Markup:
    x, y = _corner(place)
    middle = y + _NODE_HEIGHT / 2
    parts = []
    if parent is not None:
        from_x, from_y = _corner(parent)
        right, from_middle = from_x + _NODE_WIDTH, from_y + _NODE_HEIGHT / 2
        parts.append(
            svg.path(
                [(right, from_middle), (right + _TRUNK, from_middle), (right + _TRUNK, middle), (x, middle)], "edge"
            )
        )
        start = right + _TRUNK + 8
        heights = [middle - 7, middle + 16, middle + 31]
        for at, words in zip(heights, node.edge, strict=False):
            parts.append(svg.text(start, at, words, "edge-name"))
    parts.append(
        svg.tag(
            "rect",
            x=x,
            y=y,
            width=_NODE_WIDTH,
            height=_NODE_HEIGHT,
            rx=7,
            class_="node selected" if node.selected else "node",
        )
    )
    parts.append(svg.tag("rect", x=x + 10, y=y + 12, width=4, height=_NODE_HEIGHT - 24, rx=2, class_=node.class_))
    parts.append(svg.text(x + 24, y + 25, svg.shorten(node.name, 28), "node-name"))
    for index, words in enumerate(node.lines):
        parts.append(svg.text(x + 24, y + 46 + 16 * index, words, "node-line"))
    return svg.group(svg.title(node.tip), *parts)


def _corner(place: tuple[int, float]) -> tuple[float, float]:
    depth, row = place
    return _MARGIN + depth * (_NODE_WIDTH + _GAP), _MARGIN + row * _PITCH
