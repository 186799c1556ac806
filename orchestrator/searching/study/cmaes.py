"""CMA-ES (Hansen 2016, arXiv:1604.00772), its state computed anew from the finished trials each time.

Optuna's sampler keeps that state in the storage as a pickle. Here the storage holds one number a trial, the generation
that it was drawn in; the distribution follows from the generations before, in the order of the trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.spec.space import Space

GENERATION = "generation"
"""The user attribute of a trial that says which generation it was drawn in."""


@dataclass(frozen=True)
class Individual:
    """A trial that the distribution learns from.

    Attributes:
        rank: what it is ordered by within its generation, smaller is better. CMA-ES looks at the order alone.
    """

    number: int
    generation: int
    params: dict[str, Any]
    rank: tuple[float, ...]


def draw(space: Space, individuals: Sequence[Individual], population: int, seed: int) -> tuple[dict[str, Any], int]:
    """The values of the next trial, and the generation that it belongs to.

    Args:
        space: numbers alone; whole ones and steps are rounded, and learnt from as rounded.
        individuals: in any order.
        seed: of this trial's draw; the distribution itself does not depend on it.
    """
    from cmaes import CMA  # brings scipy's statistics along: a second to import

    keys = list(space)
    cma = CMA(
        mean=np.full(len(keys), 0.5),
        sigma=1.0 / 6.0,
        bounds=np.tile([0.0, 1.0], (len(keys), 1)),
        n_max_resampling=10 * len(keys),
        population_size=population,
        seed=seed,
    )
    while True:
        born = sorted((each for each in individuals if each.generation == cma.generation), key=lambda each: each.number)
        if len(born) < population:
            break
        best_first = sorted(born[:population], key=lambda each: (each.rank, each.number))
        cma.tell(
            [
                (np.array([space[key].share_of(each.params[key]) for key in keys]), float(place))
                for place, each in enumerate(best_first)
            ]
        )
    cma.reseed_rng(seed)
    shares = cma.ask().tolist()
    return {key: space[key].at(share) for key, share in zip(keys, shares, strict=True)}, cma.generation


def completed_rank(cost: float, violation: float) -> tuple[float, ...]:
    """Within the budget by cost (smaller is better), then by how far outside (Deb 2000)."""
    return (0.0, cost) if violation <= 0.0 else (1.0, violation)


def stopped_rank(epochs: int, cost: float) -> tuple[float, ...]:
    """Behind everything that completed; who got further comes first."""
    return (2.0, -float(epochs), math.inf if math.isnan(cost) else cost)
