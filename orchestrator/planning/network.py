"""Who sits on which node, and what a message takes from one to another. Pure.

Ranks fill one node after another (`cluster.gang.rank_order`), and a layout numbers them pipeline first, then data, then
tensor (`jobs.layout`). So tensor peers are neighbours, data peers are `tensor` apart, and stages lie furthest apart.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jobs.layout import Coordinate, ParallelLayout

Axis = Literal["data", "tensor"]


@dataclass(frozen=True)
class Spread:
    """How the peers of an axis lie on nodes, in the group where they lie worst.

    Attributes:
        nodes: that a group spans.
        together: peers that at least lie on each of them, where a group spans several.
    """

    nodes: int
    together: int


@dataclass(frozen=True)
class Carried:
    """What a device sends, in bytes, and how long that takes."""

    within: float = 0.0
    between: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Carried") -> "Carried":
        return Carried(self.within + other.within, self.between + other.between, self.seconds + other.seconds)


@dataclass(frozen=True)
class Network:
    """The links of a cluster.

    Attributes:
        within, between: bytes a second that a worker sends in its node, and to other nodes while all others do too.
        within_s, between_s: latency of a message.
    """

    workers_per_node: int
    within: float
    between: float
    within_s: float = 0.0
    between_s: float = 0.0

    def ring(self, layout: ParallelLayout, axis: Axis, sent: int, messages: int) -> Carried:
        """A collective over the peers of an axis, by rings, of which a worker sends so many bytes.

        Where k peers share a node there are k rings, each leaving it through another device. So of the bytes that a
        worker sends, one in k leaves the node; both kinds of link are busy at once.
        """
        if sent == 0:
            return Carried()
        found = spread(layout, axis, self.workers_per_node)
        if found.nodes == 1:
            return Carried(within=sent, seconds=sent / self.within + messages * self.within_s)
        leaving = sent / found.together
        staying = sent - leaving
        seconds = max(staying / self.within, leaving / self.between)
        return Carried(staying, leaving, seconds + messages * max(self.within_s, self.between_s))

    def hand_on(self, layout: ParallelLayout, sent: int, messages: int) -> Carried:
        """What goes from stage to stage: between nodes where there are several, for then some pair of stages is."""
        if layout.size <= self.workers_per_node:
            return Carried(within=sent, seconds=sent / self.within + messages * self.within_s)
        return Carried(between=sent, seconds=sent / self.between + messages * self.between_s)


def spread(layout: ParallelLayout, axis: Axis, workers_per_node: int) -> Spread:
    """Where the peers of an axis lie.

    >>> spread(ParallelLayout(data=4, tensor=4), "data", 8)
    Spread(nodes=2, together=2)
    """
    return _spread(layout.data, layout.tensor, layout.pipeline, axis, workers_per_node)


@lru_cache(maxsize=4096)
def _spread(data: int, tensor: int, pipeline: int, axis: Axis, workers_per_node: int) -> Spread:
    layout = ParallelLayout(data, tensor, pipeline)
    counts = [Counter(rank // workers_per_node for rank in group) for group in _groups(layout, axis, workers_per_node)]
    several = [min(count.values()) for count in counts if len(count) > 1]
    return Spread(max(map(len, counts)), min(several, default=layout.data if axis == "data" else layout.tensor))


def _groups(layout: ParallelLayout, axis: Axis, workers_per_node: int) -> Iterator[list[int]]:
    """The ranks of each group of peers; of groups that lie alike, not all: their first ranks repeat on the nodes."""
    others = layout.tensor if axis == "data" else layout.data
    seen: set[int] = set()
    for stage in range(min(layout.pipeline, workers_per_node)):
        for other in range(min(others, workers_per_node)):
            if axis == "data":
                places = [Coordinate(index, other, stage) for index in range(layout.data)]
            else:
                places = [Coordinate(other, index, stage) for index in range(layout.tensor)]
            ranks = [layout.rank(place) for place in places]
            start = ranks[0] % workers_per_node
            if start not in seen:
                seen.add(start)
                yield ranks
