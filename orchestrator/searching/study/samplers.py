"""Who draws the values of a trial: a sampler made anew for each, so that nothing of it lives outside the study's file.

What a sampler draws is a function of (seed, place of the trial, finished trials): a search that was broken off goes on
as if nothing had been. Nothing is unpickled: Optuna's CMA-ES keeps its state in the storage as a pickle, so CMA-ES is
replayed from the finished trials here; the state of NSGA-II (numbers of generations, ids of parents) is JSON, those of
TPE and of the Gaussian processes are the trials themselves.
"""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from jobs.spec.search import STARTUP_TRIALS, Phase, Search
from jobs.spec.space import Space, is_active, is_conditional, ordered
from orchestrator.searching.study.space import distribution


class Planned(BaseSampler):
    """Gives the values that were chosen before the trial was made."""

    def __init__(self, values: Mapping[str, Any], space: Space) -> None:
        self.values = dict(values)
        self.space = {key: distribution(space[key]) for key in values}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.values[param_name]


def seed_of(seed: int, place: int) -> int:
    """The seed of whatever draws the trial at a place of a search."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:4], "big")


def optuna_sampler(search: Search, phase: Phase, place: int) -> BaseSampler:
    """Optuna's own sampler for a trial, of the algorithms whose state is the trials."""
    seed = seed_of(search.seed, place)
    match search.algorithm:
        case "random":
            return RandomSampler(seed=seed)
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return TPESampler(
                    seed=seed,
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    group=is_conditional(search.dimensions(phase)),
                    constant_liar=True,
                )
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=search.population(phase))
        case _:
            raise ValueError(f"{search.algorithm} is no sampler of Optuna's")


def sobol_point(space: Space, seed: int, place: int) -> dict[str, Any]:
    """The values at a place of Sobol's sequence (Sobol 1967), scrambled by Owen's method after the seed.

    Every key has a coordinate of its own, whether it is there at that point or not.
    """
    from scipy.stats.qmc import Sobol  # takes a second to import

    keys = ordered(space)
    engine = Sobol(len(keys), scramble=True, rng=seed)
    if place:
        engine.fast_forward(place)
    shares = engine.random(1)[0].tolist()
    values: dict[str, Any] = {}
    for key, share in zip(keys, shares, strict=True):
        if is_active(space[key], values):
            values[key] = space[key].at(share)
    return values
