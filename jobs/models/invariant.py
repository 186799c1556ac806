"""Layers that look at the batch, and give the same under every layout.

Stock batch normalization takes its statistics over the micro-batch, and stock dropout draws from the process's random
state: with them another number of workers, or another micro-batch, is another training. Here statistics are taken over
groups of consecutive samples of the global batch, of a fixed size (Hoffer, Hubara & Soudry 2017 call it *ghost* batch
normalization), and a dropout mask is a function of (seed, layer, step, sample id, element).
"""

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from jobs.data.randomness import GOLDEN, Purpose, hash_words

if TYPE_CHECKING:
    _Norm = nn.BatchNorm2d
else:
    _Norm = object


class _Grouped(_Norm):
    """Batch normalization over groups; the running statistics are the mean over all groups of a global batch.

    They change when `commit` is called, once a global batch, with the mean over the workers.
    """

    group: int
    pending: list[torch.Tensor]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, …) → the same shape. In training, batch must be a multiple of the group."""
        if not self.training:
            return functional.batch_norm(
                x.float(), self.running_mean, self.running_var, self.weight.float(), self.bias.float(), eps=self.eps
            ).to(x.dtype)
        if len(x) % self.group:
            raise ValueError(f"{len(x)} samples are no multiple of the normalization group of {self.group}")
        parts, statistics = [], []
        for samples in x.split(self.group):
            # In fp32 whatever the precision of the rest, as mixed precision should.
            part, mean, inverse_std = torch.native_batch_norm(
                samples.float(), self.weight.float(), self.bias.float(), None, None, True, 0.0, self.eps
            )
            parts.append(part)
            count = samples.numel() // samples.shape[1]
            variance = (inverse_std.detach().pow(-2) - self.eps) * (count / (count - 1))
            statistics.append(torch.stack([mean.detach(), variance]))
        self.pending.append(torch.stack(statistics).mean(dim=0))
        return torch.cat(parts).to(x.dtype)

    def take_pending(self) -> torch.Tensor:
        """(2, channels): mean and variance over the groups seen since the last call."""
        found = torch.stack(self.pending).mean(dim=0)
        self.pending.clear()
        return found

    def commit(self, statistics: torch.Tensor) -> None:
        """Moves the running statistics towards those of a whole global batch."""
        assert self.momentum is not None
        with torch.no_grad():
            for name, found in zip(("running_mean", "running_var"), statistics, strict=True):
                running: torch.Tensor = getattr(self, name)
                running.lerp_(found.to(running.dtype), self.momentum)
            getattr(self, "num_batches_tracked").add_(1)  # noqa: B009 - its declared type is wider


class GroupedBatchNorm1d(_Grouped, nn.BatchNorm1d):
    def __init__(self, width: int, group: int) -> None:
        nn.BatchNorm1d.__init__(self, width)
        self.group, self.pending = group, []


class GroupedBatchNorm2d(_Grouped, nn.BatchNorm2d):
    def __init__(self, width: int, group: int) -> None:
        nn.BatchNorm2d.__init__(self, width)
        self.group, self.pending = group, []


GROUPED = (GroupedBatchNorm1d, GroupedBatchNorm2d)


class SampleDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask belongs to the sample, not to the batch that it came in.

    Args:
        p: probability that an element is dropped.
        layer: tells the layers of a model apart.

    Attributes:
        shard: which part of the channels (of the features, where there are no channels) it sees, of how many equal
            ones: its mask is that part of the whole layer's.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer
        self.shard: tuple[int, int] = (0, 1)
        self.keys: torch.Tensor | None = None

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def begin(self, seed: int, step: int, ids: npt.NDArray[np.int64], device: torch.device) -> None:
        """Says which samples, (batch,), come next, and in which step."""
        keys = hash_words(seed, Purpose.DROPOUT, self.layer, step, ids)
        self.keys = torch.from_numpy(keys.view(np.int64)).to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, …) → the same shape. Outside of a training by Thresher, it is stock dropout."""
        if not self.training or self.p == 0.0:
            return x
        if self.keys is None:
            return functional.dropout(x, self.p)
        draws = (self._elements(x.shape[1:], x.device) + 1) * _GOLDEN
        words = _mix(self.keys[:, None] + draws)
        # The upper 24 bits, as a float in [0, 1).
        kept = (words >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24 >= self.p
        return x * kept.view_as(x).to(x.dtype) / (1.0 - self.p)

    def _elements(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """The numbers that a sample's elements have in the whole layer, in order."""
        index, count = self.shard
        channels = 0 if len(shape) == 3 else len(shape) - 1
        whole = [size * count if axis == channels else size for axis, size in enumerate(shape)]
        numbers = torch.arange(prod(whole), device=device).view(whole)
        return numbers.narrow(channels, index * shape[channels], shape[channels]).flatten()


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN, _FIRST, _SECOND = (_signed(w) for w in (int(GOLDEN), 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(words: torch.Tensor) -> torch.Tensor:
    """`jobs.data.randomness.mix` on signed words: torch shifts them arithmetically, so the upper bits are masked."""
    words = (words ^ (words >> 30 & (1 << 34) - 1)) * _FIRST
    words = (words ^ (words >> 27 & (1 << 37) - 1)) * _SECOND
    return words ^ (words >> 31 & (1 << 33) - 1)
