"""How the samples of a split are laid out in its Arrow file."""

from math import prod

import numpy as np

from jobs.data.raw import Array, Columns, Raw, Sequences
from jobs.data.statistics import (
    CodesStatistics,
    ImageStatistics,
    SequenceStatistics,
    Statistics,
    TableStatistics,
)

Form = dict[str, tuple[str, tuple[int, ...]]]
"""Of each array, the type and the shape of one sample."""


def to_arrays(raw: Raw) -> dict[str, Array]:
    """Arrays by name, the samples first; those of no columns are left out."""
    if isinstance(raw, Columns):
        columns = {"numeric": raw.numeric, "categorical": raw.categorical}
        return {name: array for name, array in columns.items() if array.shape[1] > 0}
    return {"x": raw.values, "lengths": raw.lengths} if isinstance(raw, Sequences) else {"x": raw}


def form_of(statistics: Statistics) -> Form:
    """What to_arrays gives for samples with these statistics, flattened."""
    match statistics:
        case ImageStatistics():
            return {"x": (statistics.dtype, (prod(statistics.shape),))}
        case TableStatistics() | CodesStatistics():
            widths = {"numeric": len(statistics.numeric), "categorical": len(statistics.categorical)}
            types = {"numeric": "float32", "categorical": "int32"}
            return {name: (types[name], (width,)) for name, width in widths.items() if width}
        case SequenceStatistics():
            size = statistics.steps * len(statistics.features)
            return {"x": ("float32", (size,)), "lengths": ("int32", ())}
        case _:
            return {"x": ("int32", (statistics.steps,))}


def from_arrays(statistics: Statistics, arrays: dict[str, Array], num_samples: int) -> Raw:
    """The reverse of to_arrays, for arrays in the form of these statistics."""
    match statistics:
        case ImageStatistics():
            return arrays["x"].reshape(num_samples, *statistics.shape)
        case TableStatistics() | CodesStatistics():
            return Columns(
                arrays.get("numeric", np.zeros((num_samples, 0), np.float32)),
                arrays.get("categorical", np.zeros((num_samples, 0), np.int32)),
            )
        case SequenceStatistics():
            shape = (num_samples, statistics.steps, len(statistics.features))
            return Sequences(arrays["x"].reshape(shape), arrays["lengths"])
        case _:
            return arrays["x"]
