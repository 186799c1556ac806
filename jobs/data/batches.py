"""Training batches: each rank's part of the k-th global batch, encoded and augmented."""

from typing import TYPE_CHECKING

import numpy as np

from jobs.data.dataset import Dataset
from jobs.data.inspection import check_augmentation
from jobs.data.order import GlobalOrder, Ids
from jobs.data.raw import Array
from jobs.spec.data import Data

if TYPE_CHECKING:
    import torch

PLACES_AHEAD = 4096
"""Of the global order, computed at once: of small batches one by one, the calls cost more than the numbers."""


class TrainingBatches:
    """The training split in the global order.

    What a sample looks like depends on (seed, epoch, its id) alone, so however a batch is divided among ranks and
    accumulation steps, the parts put together are the same batch:

        batches = TrainingBatches(dataset, data, batch_size=128, seed=0)
        x, y, ids = batches.share(step, data_rank=1, data_degree=2, part=0, parts=2)    # samples 64 … 95 of it
    """

    def __init__(self, dataset: Dataset, data: Data, batch_size: int, seed: int) -> None:
        check_augmentation(data, dataset.info)
        self.order = GlobalOrder(dataset.num_samples("train"), batch_size, seed)
        self.encoding = dataset.encoding(data.normalize)
        self._dataset = dataset
        self._steps = data.augment
        self._seed = seed
        self._ahead = max(1, PLACES_AHEAD // batch_size)
        self._newest = -1, self.order.slice(0, 0)

    def share(
        self, step: int, data_rank: int = 0, data_degree: int = 1, part: int = 0, parts: int = 1
    ) -> "tuple[torch.Tensor, torch.Tensor, Ids]":
        """Part `part` of `parts` of a data rank's contiguous share of global batch `step`.

        Returns x float32 or int64 (samples, *input_shape); y int64 labels or float32 values (samples,), or of a
        language model the next tokens, int64 (samples, steps); ids int64 (samples,).
        """
        import torch

        ids, epochs = self._places(step, data_rank, data_degree, part, parts)
        raw = self._dataset.raw("train", ids)
        if self._steps and isinstance(raw, np.ndarray):
            from jobs.data.augment import augment

            raw = augment(raw, self._steps, seed=self._seed, epochs=epochs, ids=ids)
        x = torch.from_numpy(self.encoding.encode(raw))
        return x, torch.from_numpy(self._dataset.targets("train", ids)), ids

    def ids(self, step: int, data_rank: int = 0, data_degree: int = 1, part: int = 0, parts: int = 1) -> Ids:
        """The sample ids of what `share` gives, alone: (samples,)."""
        return self._places(step, data_rank, data_degree, part, parts)[0]

    def _places(self, step: int, data_rank: int, data_degree: int, part: int, parts: int) -> tuple[Ids, Ids]:
        first, last = _bounds(0, self.order.batch_size, data_rank, data_degree)
        first, last = _bounds(first, last, part, parts)
        ids, epochs = self._batch(step)
        return ids[first:last], epochs[first:last]

    def _batch(self, step: int) -> tuple[Ids, Ids]:
        """The whole batch's places, computed once: a step asks for its targets, then for each of its parts."""
        size, block = self.order.batch_size, step // self._ahead
        if self._newest[0] != block:
            self._newest = block, self.order.slice(block * self._ahead * size, (block + 1) * self._ahead * size)
        ids, epochs = self._newest[1]
        first = step % self._ahead * size
        return ids[first : first + size], epochs[first : first + size]

    def targets(self, step: int) -> Array:
        """Labels, values or next tokens of the whole global batch: (batch_size,) or (batch_size, steps)."""
        return self._dataset.targets("train", self._batch(step)[0])


def _bounds(first: int, last: int, index: int, count: int) -> tuple[int, int]:
    """The index-th of `count` contiguous pieces of first … last-1, as equal as can be."""
    if not 0 <= index < count:
        raise ValueError(f"piece {index} of {count}")
    size = last - first
    return first + size * index // count, first + size * (index + 1) // count
