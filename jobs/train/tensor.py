"""Tensor parallelism: layers divided over a group of peers (Shoeybi et al. 2019, Megatron-LM, section 3).

A model's layers say how they are divided (`split`, see jobs/models/layers.py); `split_module` carries it out. A pair of
a column and a row layer needs one sum over the peers in the forward pass, and one in the backward pass:

    x ─copy─▶ column (its share of the outputs) ─▶ activation ─▶ row (from its share of the inputs) ─sum─▶ y

Values that are whole are the same on all peers, and so are their gradients.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from deepspeed import comm
from torch import nn
from torch.nn import functional

from jobs.models.invariant import GROUPED, SampleDropout


@dataclass(frozen=True)
class Peers:
    """Those that divide each layer among them.

    Attributes:
        group: the process group.
        index: this rank's place in it.
    """

    group: Any
    index: int
    count: int

    def share(self, size: int) -> tuple[int, int]:
        """First and one past the last of this rank's part of 0 … size-1."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


class _Copy(torch.autograd.Function):
    """The identity, whose gradient is the sum over the peers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, peers: Peers) -> torch.Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(gradient, ctx.peers), None


class _Sum(torch.autograd.Function):
    """The sum over the peers, whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, peers: Peers) -> torch.Tensor:
        return _sum(x, peers)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    """The peers' parts along the last dimension, put together; each takes its part of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, peers: Peers) -> torch.Tensor:
        ctx.peers = peers
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(peers.count)]
        comm.all_gather(parts, x.contiguous(), group=peers.group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        first, last = ctx.peers.share(gradient.shape[-1])
        return gradient[..., first:last], None


def _sum(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    comm.all_reduce(total, group=peers.group)
    return total


class _Split(nn.Module):
    """What the divided layers share: they take over a whole layer's attributes, and know their peers."""

    peers: Peers

    @classmethod
    def of(cls, layer: nn.Module, peers: Peers) -> Self:
        divided = cls.__new__(cls)
        divided.__dict__ = layer.__dict__
        divided.peers = peers
        return divided


class ColumnLinear(_Split, nn.Linear):
    """(…, inputs), whole → (…, outputs / peers)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(_Copy.apply(x, self.peers), self.weight, self.bias)


class CopiedLinear(_Split, nn.Linear):
    """As ColumnLinear, where the module around it has copied the input for several layers at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class GatherLinear(_Split, nn.Linear):
    """(…, inputs), whole → (…, outputs), whole: each peer computes its share of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = functional.linear(_Copy.apply(x, self.peers), self.weight, self.bias)
        return _Gather.apply(part, self.peers)


class RowLinear(_Split, nn.Linear):
    """(…, inputs / peers) → (…, outputs), whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = _Sum.apply(functional.linear(x, self.weight), self.peers)
        return total if self.bias is None else total + self.bias


class ColumnConv2d(_Split, nn.Conv2d):
    """(batch, channels, height, width), whole → (batch, outputs / peers, …)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(_Copy.apply(x, self.peers), self.weight, self.bias)


class RowConv2d(_Split, nn.Conv2d):
    """(batch, channels / peers, height, width) → (batch, outputs, …), whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = _Sum.apply(self._conv_forward(x, self.weight, None), self.peers)
        return total if self.bias is None else total + self.bias[:, None, None]


class RowsEmbedding(_Split, nn.Embedding):
    """Codes (…), any of them → (…, width), whole: each peer looks up the rows that it has."""

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        codes = codes - self.peers.index * self.num_embeddings
        elsewhere = (codes < 0) | (codes >= self.num_embeddings)
        found = functional.embedding(codes.masked_fill(elsewhere, 0), self.weight)
        return _Sum.apply(found.masked_fill(elsewhere[..., None], 0.0), self.peers)


def split_module(module: nn.Module, peers: Peers) -> dict[str, int]:
    """Divides a whole module in place, layer by layer, as its layers say.

    Returns the dimension along which each divided parameter and buffer is cut, by name; all others are whole.
    """
    cut: dict[str, int] = {}
    parts: dict[nn.Parameter, nn.Parameter] = {}  # of each whole parameter, so that tied ones stay tied
    for name, layer in list(module.named_modules()):
        how = getattr(layer, "split", None)
        if how is None:
            continue
        for tensor, dim in _cuts(layer, how).items():
            _slice(layer, tensor, dim, peers, parts)
            cut[f"{name}.{tensor}"] = dim
        parent, _, attribute = name.rpartition(".")
        owner = module.get_submodule(parent)
        divided = _divided(layer, how, peers, copied=_copies_for(owner, attribute))
        if divided is not layer:
            setattr(owner, attribute, divided)
    for layer in module.modules():
        if _is_attention(layer):
            layer.register_forward_pre_hook(lambda _, args: (_Copy.apply(args[0], peers), *args[1:]))
    return cut


def _cuts(layer: nn.Module, how: str) -> dict[str, int]:
    """Which of a layer's tensors are cut, and along which dimension."""
    names = [name for name, value in _tensors(layer) if value.dim() > 0]
    if how == "row":
        return {"weight": 1}
    if how == "rows":
        return {"weight": 0}
    return dict.fromkeys(names, 0)  # column, gather, channels


def _tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _slice(layer: nn.Module, name: str, dim: int, peers: Peers, parts: dict[nn.Parameter, nn.Parameter]) -> None:
    whole: torch.Tensor = getattr(layer, name)
    first, last = peers.share(whole.shape[dim])
    part = whole.detach().narrow(dim, first, last - first).clone()
    if isinstance(whole, nn.Parameter):
        part = parts.setdefault(whole, nn.Parameter(part, requires_grad=whole.requires_grad))
    setattr(layer, name, part)


def _divided(layer: nn.Module, how: str, peers: Peers, *, copied: bool) -> nn.Module:
    """The layer that takes this one's place, its sizes those of its part."""
    match layer, how:
        case nn.Linear(), _:
            layer.out_features, layer.in_features = layer.weight.shape
            kinds: dict[str, type[_Split]] = {"column": ColumnLinear, "row": RowLinear, "gather": GatherLinear}
            return (CopiedLinear if copied else kinds[how]).of(layer, peers)
        case nn.Conv2d(), _:
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
            return (ColumnConv2d if how == "column" else RowConv2d).of(layer, peers)
        case nn.Embedding(), "rows":
            layer.num_embeddings = layer.weight.shape[0]
            return RowsEmbedding.of(layer, peers)
        case nn.GroupNorm(), "channels":
            layer.num_groups //= peers.count
            layer.num_channels //= peers.count
            return layer
        case SampleDropout(), "channels":
            layer.shard = (peers.index, peers.count)
            return layer
    if isinstance(layer, GROUPED) and how == "channels":
        layer.num_features //= peers.count
        return layer
    raise TypeError(f"no way is known to divide {layer} by {how}")


_ATTENTION_INPUTS = ("query", "key", "value")


def _is_attention(layer: nn.Module) -> bool:
    return all(isinstance(getattr(layer, name, None), CopiedLinear) for name in _ATTENTION_INPUTS)


def _copies_for(owner: nn.Module, attribute: str) -> bool:
    """Whether `owner` is an attention layer, whose three inputs are one: it is copied once for all of them."""
    return attribute in _ATTENTION_INPUTS and all(hasattr(owner, name) for name in _ATTENTION_INPUTS)
