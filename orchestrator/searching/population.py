"""Population-based training (Jaderberg et al. 2017): who takes over whose training, and with which values.

Pure and seeded: what a generation decides follows from its outcome, the seed and the generation's number, so that a
search that was broken off decides again what it had decided.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.spec.dimension import Dimension, Value
from jobs.spec.search import Direction, Pbt


@dataclass(frozen=True)
class Standing:
    """A member at the end of a generation.

    Attributes:
        score: the validation metric; None if its training failed.
    """

    number: int
    params: Mapping[str, Value]
    score: float | None


@dataclass(frozen=True)
class Move:
    """What a member does in the next generation.

    Attributes:
        source: whose checkpoint it goes on from; its own number for most.
    """

    source: int
    params: dict[str, Value]


def generation_ends(evaluations: Sequence[int], interval: int) -> list[int]:
    """The steps at which generations end: every `interval`-th evaluation, and the last.

    >>> generation_ends([10, 20, 30, 40, 50], 2)
    [20, 40, 50]
    """
    ends = list(evaluations[interval - 1 :: interval])
    return ends if ends and ends[-1] == evaluations[-1] else [*ends, evaluations[-1]]


def next_generation(
    standings: Sequence[Standing],
    space: Mapping[str, Dimension],
    pbt: Pbt,
    *,
    direction: Direction,
    seed: int,
    generation: int,
) -> dict[int, Move]:
    """Exploit and explore: members of the bottom quantile take over a random one of the top, and vary its values.

    A member whose training failed belongs to the bottom whatever its rank. Raises ValueError if all have failed.
    """
    sign = -1.0 if direction == "max" else 1.0

    def rank(standing: Standing) -> tuple[float, int]:
        failed = standing.score is None or math.isnan(standing.score)
        return (math.inf if failed else sign * (standing.score or 0.0)), standing.number

    ranked = sorted(standings, key=rank)
    alive = [standing for standing in ranked if rank(standing)[0] < math.inf]
    if not alive:
        raise ValueError("no member of the population is left to go on from")
    count = min(max(1, int(len(ranked) * pbt.quantile)), len(ranked) // 2)
    top = alive[:count]
    bottom = {standing.number for standing in ranked[len(ranked) - count :] + ranked[len(alive) :]}
    moves = {}
    for standing in standings:
        # A stream for each member: what one draws must not depend on who else draws.
        draw = random.Random(f"{seed}/{generation}/{standing.number}")
        if standing.number in bottom and standing not in top:
            source = draw.choice(top)
            moves[standing.number] = Move(source.number, explored(source.params, space, pbt, draw))
        else:
            moves[standing.number] = Move(standing.number, dict(standing.params))
    return moves


def explored(
    params: Mapping[str, Value], space: Mapping[str, Dimension], pbt: Pbt, draw: random.Random
) -> dict[str, Value]:
    """Each value drawn anew with the probability `resample`, else moved up or down, within the bounds."""
    found: dict[str, Value] = {}
    for key in sorted(params):
        dimension = space[key]
        if draw.random() < pbt.resample:
            found[key] = dimension.at(draw.random())
        else:
            found[key] = _moved(params[key], dimension, up=draw.random() < 0.5, factor=pbt.factor)
    return found


def _moved(value: Value, dimension: Dimension, *, up: bool, factor: float) -> Value:
    if dimension.choice is not None:  # in the order in which they are written
        place = dimension.choice.index(value) + (1 if up else -1)
        return dimension.choice[min(max(place, 0), len(dimension.choice) - 1)]
    assert dimension.bounds is not None
    low, high = dimension.bounds
    before = float(value)
    moved = before * factor if up else before / factor
    if dimension.step is not None or dimension.whole:
        step = dimension.step or 1.0
        least = 1.0 if up else -1.0
        steps = round((moved - before) / step)
        moved = before + step * (steps if steps * least >= 1 else least)
    moved = min(max(moved, low), high)
    return round(moved) if dimension.whole else dimension.snapped(moved)
