"""Randomness as a function of what it is for, not of what was drawn before.

Every number is a hash of (seed, purpose, …): any rank can compute any sample's, in any order, and no library's
generator can change it under us. The hash is SplitMix64's finalizer (Steele, Lea & Flood 2014, "Fast splittable
pseudorandom number generators"), chained over the words.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = (np.uint64(bits) for bits in (30, 27, 31, 11))


class Purpose(IntEnum):
    """Keeps the numbers for one purpose independent of those for another, under the same seed."""

    ORDER = 1
    SPLIT = 2
    CALIBRATION = 3
    AUGMENTATION = 4
    DROPOUT = 5
    SUBSET = 6


def mix(words: Words) -> Words:
    """SplitMix64's finalizer: a bijection of 64-bit words in which every input bit affects every output bit."""
    words = (words ^ (words >> _30)) * _FIRST
    words = (words ^ (words >> _27)) * _SECOND
    return words ^ (words >> _31)


def hash_words(*words: npt.ArrayLike) -> Words:
    """Hashes tuples of integers, element by element after broadcasting; at least one-dimensional."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix(state + GOLDEN + np.atleast_1d(np.asarray(word)).astype(np.uint64))
    return state


def uniforms(seed: int, epochs: npt.ArrayLike, ids: npt.ArrayLike, stream: int, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1): (samples, count), each a function of (seed, stream, epoch, sample id, column).

    Args:
        epochs: (samples,) the epoch each sample is drawn in.
        ids: (samples,) sample ids.
        stream: which use this is (the position of an augmentation step), so that two uses never share numbers.
        count: how many numbers a sample needs.
    """
    sample = hash_words(seed, Purpose.AUGMENTATION, stream, epochs, ids)
    draws = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (mix(sample[:, None] + draws) >> _11).astype(np.float64) * 2.0**-53
