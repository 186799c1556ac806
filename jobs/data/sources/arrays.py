"""Raw samples from arrays, the samples first."""

import numpy as np
import numpy.typing as npt

from jobs.data.raw import Array, Columns, Sequences, present
from jobs.data.sources.source import PATH
from jobs.errors import DataError

MAX_CODES = 10_000_000
"""Of tokens: each has a row in a table."""


def as_raw(array: Array, what: str, where: str = PATH) -> Array | Columns:
    """Raw samples from an array with the samples first.

    (n, features) are vectors. (n, height, width) are images of one channel. Of rank 4, (n, channels, height, width)
    with 1 or 3 channels is tried first, then (n, height, width, channels). Bytes stay bytes; all other numbers
    become float32. Raises DataError for other ranks and types, and for images with NaN or infinity.
    """
    _check_numbers(array, what, where)
    if array.ndim == 2:
        return Columns(as_numeric(array, what, where), np.zeros((len(array), 0), np.int32))
    images = as_channels_first(array, what, where)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(images)
    with np.errstate(over="ignore"):  # what is beyond float32 is told below
        pixels = np.ascontiguousarray(images, np.float32)
    if not np.isfinite(pixels).all():
        first = np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2, 3)))[0]
        raise DataError.at(where, f"{what} has pixels that are not finite, the first in sample {first + 1}")
    return pixels


def as_steps(array: Array, lengths: Array, what: str, where: str = PATH) -> Array | Sequences:
    """Raw samples from an array that has lengths (samples,): what is beyond these is padding, and becomes 0.

    Numbers (n, steps, features) are sequences. Integers (n, steps) are tokens. Raises DataError for other ranks and
    types, for lengths that are none, and for steps with NaN or infinity.
    """
    _check_numbers(array, what, where)
    check_step_shape(array.shape, array.dtype, what, where)
    lengths = as_lengths(lengths, len(array), array.shape[1], f"the lengths of {what}", where)
    there = present(lengths, array.shape[1])
    if array.ndim == 2:
        return _as_tokens(array, there, what, where)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.where(there[..., None], array, 0).astype(np.float32)
    wrong = np.argwhere(~np.isfinite(values).all(axis=2))
    if wrong.size:
        sample, step = wrong[0] + 1
        num_samples = len(np.unique(wrong[:, 0]))
        has = f"{num_samples} samples with values that are not finite, the first in sample {sample}, step {step}"
        raise DataError.at(where, f"{what} has {has}")
    return Sequences(values, lengths)


def as_numeric(values: Array, what: str, where: str = PATH) -> npt.NDArray[np.float32]:
    """float32 with NaN for missing. Raises DataError for infinite values, and for those beyond float32."""
    with np.errstate(over="ignore"):
        numeric = values.astype(np.float32)
    infinite = np.flatnonzero(np.isinf(numeric).reshape(len(numeric), -1).any(axis=1))
    if infinite.size:
        rows = f"{infinite.size} rows with values that are infinite or beyond float32, the first in row"
        raise DataError.at(where, f"{what} has {rows} {infinite[0] + 1}")
    return numeric


def as_channels_first(array: Array, what: str, where: str) -> Array:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.moveaxis(array, 3, 1)
    allowed = "(n, features), (n, height, width), (n, channels, height, width) or (n, height, width, channels)"
    raise DataError.at(where, f"{what} has the shape {array.shape}", None, f"{allowed}; 1 or 3 channels")


def check_step_shape(shape: tuple[int, ...], dtype: np.dtype, what: str, where: str) -> None:
    """Raises DataError for an array that has lengths but is neither sequences nor tokens."""
    if not (len(shape) == 3 and shape[2] > 0) and not (len(shape) == 2 and dtype.kind in "iu"):
        allowed = "with lengths: numbers (n, steps, features), or integer tokens (n, steps)"
        raise DataError.at(where, f"{what} has the shape {shape} and the type {dtype}", None, allowed)


def as_lengths(lengths: Array, num_samples: int, steps: int, what: str, where: str = PATH) -> npt.NDArray[np.int32]:
    """The number of steps of each sample: (samples,). Raises DataError unless each is from 1 to `steps`."""
    if lengths.shape != (num_samples,) or lengths.dtype.kind not in "iu":
        has = f"{what} has the shape {lengths.shape} and the type {lengths.dtype}"
        raise DataError.at(where, has, None, f"one integer for each of {num_samples} samples")
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if wrong.size:
        first = f"{what}: {lengths[wrong[0]]} in sample {wrong[0] + 1}"
        raise DataError.at(where, first, None, f"1 to {steps}, as many steps as there are")
    return lengths.astype(np.int32)


def _check_numbers(array: Array, what: str, where: str) -> None:
    if array.dtype.kind not in "iufb":
        raise DataError.at(where, f"{what} has the type {array.dtype}", None, "numbers")
    if array.ndim == 0:
        raise DataError.at(where, f"{what} is a single number", None, "an array with the samples first")
    if len(array) == 0:
        raise DataError.at(where, f"{what}: no samples")


def _as_tokens(array: Array, there: npt.NDArray[np.bool_], what: str, where: str) -> npt.NDArray[np.int32]:
    """Codes from tokens: one more than these, so that 0 is left for what is beyond the end."""
    wrong = np.argwhere(there & ((array < 0) | (array >= MAX_CODES)))
    if wrong.size:
        sample, step = wrong[0]
        has = f"{what} has the token {array[sample, step]} in sample {sample + 1}"
        raise DataError.at(where, has, None, f"0 to {MAX_CODES - 1}")
    return np.where(there, array, -1).astype(np.int32) + 1
