"""What compression changes of a built module: its widths, blocks left out, layers of low rank.

All of it can be done again to a freshly built module from names and tensors alone, so that a compressed model is
stored as tensors and JSON.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from jobs.errors import ArtifactError


class LowRank(nn.Module):
    """expand(reduce(x)): a layer whose weight is the product of two thin ones.

    Of a convolution, `reduce` is one with `rank` channels and `expand` one of 1×1 (Denton et al. 2014).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        bias = layer.bias is not None
        self.reduce: nn.Module
        self.expand: nn.Module
        if isinstance(layer, nn.Conv2d):
            self.reduce = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                dilation=layer.dilation,  # type: ignore[arg-type]
                padding_mode=layer.padding_mode,
                bias=False,
            )
            self.expand = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
        else:
            self.reduce = nn.Linear(layer.in_features, rank, bias=False)
            self.expand = nn.Linear(rank, layer.out_features, bias=bias)

    @property
    def out_features(self) -> int:
        """Of a linear layer: attention derives its number of heads from it."""
        assert isinstance(self.expand, nn.Linear)
        return self.expand.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expanded: torch.Tensor = self.expand(self.reduce(x))
        return expanded


def factorize(module: nn.Module, name: str, rank: int) -> LowRank:
    """Puts a LowRank, its values still to be filled in, in the place of a layer.

    Raises AttributeError where there is no such layer, TypeError or ValueError where it has no low rank.
    """
    layer = module.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise TypeError(f"{name} is no linear layer and no convolution")
    if rank < 1 or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
        raise ValueError(f"{name} has no rank of {rank}")
    with torch.random.fork_rng(devices=[]):  # the values that layers begin with are of no use here
        factors = LowRank(layer, rank)
    factors.to(layer.weight.device, layer.weight.dtype)
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, factors)
    return factors


def drop_blocks(module: nn.Module, names: Iterable[str]) -> None:
    """Leaves out some blocks of a Sequential. Raises AttributeError where there is no such block."""
    for name in names:
        delattr(module, name)


def blocks_left_out(whole: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """The blocks that `module` has no more."""
    left = dict(module.named_children())
    return tuple(name for name, _ in whole.named_children() if name not in left)


def take_widths(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replaces parameters and buffers whose stored shape differs, and the widths that the layers remember.

    Raises ArtifactError for tensors of another number of dimensions.
    """
    for prefix, layer in module.named_modules():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        changed = False
        for name, value in own:
            stored = tensors.get(f"{prefix}.{name}" if prefix else name)
            if stored is None or stored.shape == value.shape:
                continue
            if stored.dim() != value.dim():
                raise ArtifactError(f"the tensor {prefix}.{name} of {tuple(stored.shape)} does not fit {layer}")
            empty = torch.empty_like(stored)
            setattr(layer, name, nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty)
            changed = True
        if changed:
            follow_widths(layer)


def follow_widths(layer: nn.Module) -> None:
    """Sets the widths that a layer remembers to those of its tensors, after these were replaced."""
    match layer:
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.Conv1d() | nn.Conv2d():
            layer.out_channels = layer.weight.shape[0]
            grouped = layer.groups > 1
            layer.groups = layer.out_channels if grouped and layer.weight.shape[1] == 1 else layer.groups
            layer.in_channels = layer.weight.shape[1] * layer.groups
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            # Without a scale of its own there are the running statistics, or nothing to replace.
            layer.num_features = (layer.running_mean if layer.weight is None else layer.weight).shape[0]
        case nn.LayerNorm():
            layer.normalized_shape = tuple(layer.weight.shape)
        case nn.GroupNorm():
            layer.num_channels = layer.weight.shape[0]
        case nn.Embedding():
            layer.num_embeddings, layer.embedding_dim = layer.weight.shape
        case nn.LSTM():
            layer.hidden_size = layer.get_parameter("weight_hh_l0").shape[1]
            layer.input_size = layer.get_parameter("weight_ih_l0").shape[1]
