"""Weight sharing: all weights of a layer that are not zero come from a small codebook (Han, Mao & Dally 2016).

k-means over the weights gives the centroids and who uses which; the centroids are then trained on: the gradient of one
is the sum of the gradients of all weights that use it. In the end what remains is rounded to what a pack stores
shortly: centroids and biases to 8-bit fixed point, all else in floating point to half precision.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from jobs.compress.sparse import weight_of, weighted_layers

_ITERATIONS = 100


class Shared(nn.Module):
    """weight = 0, or centroids[index] at `positions`; trained are the centroids."""

    positions: torch.Tensor
    index: torch.Tensor

    def __init__(
        self, shape: torch.Size, positions: torch.Tensor, index: torch.Tensor, centroids: torch.Tensor
    ) -> None:
        super().__init__()
        self.shape, self.start = shape, centroids
        self.register_buffer("positions", positions)
        self.register_buffer("index", index)

    def forward(self, centroids: torch.Tensor) -> torch.Tensor:
        flat = centroids.new_zeros(self.shape.numel())
        return flat.index_copy(0, self.positions, centroids[self.index]).view(self.shape)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The centroids that training starts from."""
        return self.start


def cluster(values: npt.NDArray[np.float64], count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """k-means in one dimension: (centroids in ascending order, the centroid of each value).

    It starts from centroids at equal distances, as the paper recommends: so the few large weights, which matter most,
    have some of their own. Fewer than `count` come back where some would have no values.
    """
    if len(values) == 0:
        return np.zeros(0), np.zeros(0, np.int64)
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], count) if ordered[0] < ordered[-1] else ordered[:1]
    for _ in range(_ITERATIONS):
        ends = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(bounds)
        means = np.diff(sums[bounds])[sizes > 0] / sizes[sizes > 0]
        if len(means) == len(centroids) and np.array_equal(means, centroids):
            break
        centroids = means
    return centroids, np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values, side="left").astype(np.int64)


@torch.no_grad()
def share_weights(module: nn.Module, linear_bits: int, conv_bits: int) -> dict[str, int]:
    """Replaces the non-zero weights of each layer by a codebook of at most 2^bits entries. In place.

    Returns the number of centroids by layer.
    """
    counts = {}
    for name, layer in weighted_layers(module):
        weight = weight_of(layer).detach()
        flat = weight.flatten()
        positions = flat.nonzero().flatten()
        bits = linear_bits if isinstance(layer, nn.Linear) else conv_bits
        found, index = cluster(flat[positions].double().numpy(), 2**bits)
        shared = Shared(weight.shape, positions, torch.from_numpy(index), torch.from_numpy(found).float())
        parametrize.register_parametrization(layer, "weight", shared, unsafe=True)
        counts[name] = len(found)
    return counts


@torch.no_grad()
def round_shared(module: nn.Module) -> None:
    """Rounds centroids, biases and every other floating-point tensor to what a pack stores shortly. In place."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith(("parametrizations.weight.original", "bias")):
            tensor.copy_(fixed_point(tensor))
        elif bool((half := tensor.half().to(tensor.dtype)).isfinite().all()):
            tensor.copy_(half)


def fixed_point(tensor: torch.Tensor) -> torch.Tensor:
    """The nearest multiples of a power of two that is as small as 8 signed bits allow.

    >>> fixed_point(torch.tensor([1.0, -0.3]))
    tensor([ 1.0000, -0.2969])
    """
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest == 0.0:
        return tensor.clone()
    step = 2.0 ** np.ceil(np.log2(largest / 127.0))
    return (tensor / step).round() * step + 0.0  # no -0
