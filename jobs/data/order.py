"""The global order: which samples the k-th batch holds, as a function of (seed, k) alone."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jobs.data.randomness import GOLDEN, Purpose, Words, hash_words, mix

Ids = npt.NDArray[np.int64]

_NUM_ROUNDS = 6
"""Four suffice for a pseudorandom permutation (Luby & Rackoff 1988); the margin is for domains of a few samples."""


@dataclass(frozen=True)
class GlobalOrder:
    """The concatenated permutations of all epochs, cut into batches.

    Batch k is samples kB … (k+1)B-1 of permutation(epoch 0) + permutation(epoch 1) + …, so batches cross the ends
    of epochs. No permutation is ever stored: the sample at a place is computed from the place, by a keyed
    Feistel network over a·b ≥ num_samples places with cycle walking (Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains").

        >>> order = GlobalOrder(num_samples=5, batch_size=3, seed=0)
        >>> ids, epochs = order.batch(1)    # places 3, 4 of epoch 0, then place 0 of epoch 1
        >>> epochs
        array([0, 0, 1])
    """

    num_samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ValueError(f"an order needs samples and a batch size, got {self.num_samples}, {self.batch_size}")

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Sample ids and the epoch of each: two int64 arrays (batch_size,)."""
        return self.slice(step * self.batch_size, (step + 1) * self.batch_size)

    def slice(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Ids and epochs at the places start … stop-1 of the concatenated epochs."""
        epochs, places = np.divmod(np.arange(start, stop, dtype=np.int64), self.num_samples)
        keys = hash_words(self.seed, Purpose.ORDER, epochs)
        ids = self._permute(places.astype(np.uint64), keys)
        # What falls outside is permuted again: a cycle that began inside must come back inside.
        while (outside := np.flatnonzero(ids >= self.num_samples)).size:
            ids[outside] = self._permute(ids[outside], keys[outside])
        return ids.astype(np.int64), epochs

    def num_steps(self, epochs: int) -> int:
        """Whole batches in so many epochs; the run's last remainder is dropped."""
        return epochs * self.num_samples // self.batch_size

    def epoch_of(self, step: int) -> float:
        """Epochs that are over when `step` begins, as a fraction."""
        return step * self.batch_size / self.num_samples

    @cached_property
    def _domain(self) -> tuple[np.uint64, np.uint64]:
        """(a, b) with a·b ≥ num_samples, as close as can be to a square: few places fall outside."""
        a = math.isqrt(self.num_samples - 1) + 1
        return np.uint64(a), np.uint64(-(-self.num_samples // a))

    def _permute(self, places: Words, keys: Words) -> Words:
        """A permutation of 0 … ab-1 for each key: each round adds a hash of one half to the other."""
        a, b = self._domain
        right, left = np.divmod(places, a)
        for number, constant in enumerate(_ROUND_CONSTANTS):
            if number % 2 == 0:
                left = (left + mix(keys + constant + right * GOLDEN)) % a
            else:
                right = (right + mix(keys + constant + left * GOLDEN)) % b
        return left + right * a


_ROUND_CONSTANTS = tuple(hash_words(Purpose.ORDER, number)[0] for number in range(_NUM_ROUNDS))
