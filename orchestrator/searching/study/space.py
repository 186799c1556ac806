"""A space of the spec in Optuna's terms: distributions, and a trial's values in the order of their conditions."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from jobs.spec.dimension import Dimension
from jobs.spec.space import Space, is_active, ordered


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's form of a dimension."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    assert dimension.bounds is not None
    low, high = dimension.bounds
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)


def drawn(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The values of a trial: what it has already, and what its sampler draws. Inactive keys are left out."""
    values: dict[str, Any] = {}
    for key in ordered(space):
        if is_active(space[key], values):
            values[key] = _suggest(trial, key, space[key])
    return values


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        return trial.suggest_categorical(key, dimension.choice)
    assert dimension.bounds is not None
    low, high = dimension.bounds
    if dimension.whole:
        return trial.suggest_int(key, int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return dimension.snapped(trial.suggest_float(key, low, high, log=dimension.log, step=dimension.step))


def is_complete(params: Mapping[str, Any], space: Space) -> bool:
    """Whether these are all the values of a trial: False where the search broke off while they were drawn."""
    return all(key in params for key in space if is_active(space[key], params))


def from_params(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A trial's values as `drawn` gives them, from what Optuna has written down."""
    return {key: space[key].snapped(params[key]) for key in ordered(space) if key in params}
