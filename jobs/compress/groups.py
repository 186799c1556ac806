"""What shrinks together: the groups of a model, with all the places in its parameters that belong to each unit.

A unit is what pruning keeps or removes as a whole: a channel, a neuron, a head, a state, a feature of an embedding.
For convolutions and linear layers, the groups are those of Torch-Pruning's dependency graph (Fang et al. 2023), which
knows residual connections, flattening and grouped convolutions. Recurrent layers, attention and tables of embeddings
it does not know as ours, so that their groups are found here, by hand.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from jobs.errors import JobFailed
from jobs.models.modules import Attention, CodeEmbedding, Lstm, SequenceBlock
from jobs.models.structure import follow_widths
from jobs.spec.compress import Part

_GATES = 4


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units lie along one dimension of a parameter: `places[i]` belongs to unit `units[i]`."""

    layer: nn.Module
    attribute: str
    dim: int
    places: torch.Tensor
    units: torch.Tensor

    @property
    def parameter(self) -> nn.Parameter:
        found = getattr(self.layer, self.attribute)
        assert isinstance(found, nn.Parameter)
        return found


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that takes the group's outputs: feature `places[i]` of its input comes from unit `units[i]`.

    `dim` is that of the features in the input.
    """

    layer: nn.Module
    dim: int
    places: torch.Tensor
    units: torch.Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """
    Attributes:
        name: of the layer that leads it.
        members: names of all the layers that lose something.
        width: units; with grouped convolutions or group normalization they lie in `blocks` equal blocks, and a unit
            goes from each block alike.
        size: features that each unit has.
        slices: what an importance is taken of; not all of what is removed.
        remove: removes units, by their indices.
    """

    name: str
    part: Part
    members: frozenset[str]
    width: int
    slices: tuple[Slice, ...]
    readers: tuple[Reader, ...]
    remove: Callable[[list[int]], None]
    blocks: int = 1
    size: int = 1

    def reduce(self, values: Iterable[tuple[torch.Tensor, torch.Tensor]], count: int) -> torch.Tensor:
        """(width / blocks,): the sum of pairs (values of places, units of the places), over `count` and the blocks."""
        total = torch.zeros(self.width)
        for found, units in values:
            total.index_add_(0, units, found.float().cpu())
        return (total / max(count, 1)).view(self.blocks, -1).mean(dim=0)


def find_groups(model: nn.Module, example: torch.Tensor) -> list[Group]:
    """Every group that may lose units, in a fixed order. What leads to the model's output keeps its width.

    Recurrent and attention layers of the user's own keep their widths, and so does what adds up with their outputs.

    Raises JobFailed where the model cannot be traced.
    """
    groups = [*_embeddings(model), *_recurrent(model), *_heads(model)]
    if not any(isinstance(layer, Lstm) for layer in model.modules()):
        groups += _channels(model, example)
    return groups


# -- convolutions and linear layers


def _channels(model: nn.Module, example: torch.Tensor) -> Iterator[Group]:
    import torch_pruning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise JobFailed(f"the model {type(model).__name__} cannot be traced for pruning: {error}") from error
    kinds = (nn.RNNBase, nn.MultiheadAttention, Attention)
    fixed = {part for layer in model.modules() if isinstance(layer, kinds) for part in layer.modules()}
    names = {module: name for name, module in model.named_modules()}
    for members in graph.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear]):
        layers = [dep.target.module for dep, _ in members]
        if _reaches_output(graph, members) or any(layer in fixed for layer in layers):
            continue
        lead = layers[0]
        blocks = max(_num_blocks(layer) for layer in layers)
        slices = tuple(found for member in members if (found := _slice(member)) is not None)
        yield Group(
            name=names[lead],
            part="neurons" if isinstance(lead, nn.Linear) else "channels",
            members=frozenset(names[layer] for layer in layers if layer in names),
            width=len(members[0].idxs),
            slices=slices,
            readers=tuple(reader for member in members if (reader := _reader(member)) is not None),
            remove=_remover(graph, lead, members[0].dep.handler),
            blocks=blocks,
        )


def _remover(graph: Any, layer: nn.Module, handler: Any) -> Callable[[list[int]], None]:
    def remove(units: list[int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.get_pruning_group(layer, handler, units).prune()

    return remove


def _reaches_output(graph: Any, members: Any) -> bool:
    return any(graph.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs for dep, _ in members)


def _num_blocks(layer: nn.Module) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups < layer.out_channels:
        return layer.groups
    return 1  # also depthwise: each channel on its own


def _slice(member: Any) -> Slice | None:
    """A member of one of Torch-Pruning's groups, where it has weights that tell how important a channel is."""
    from torch_pruning.pruner import function

    layer, handler = member.dep.layer, member.dep.pruning_fn
    if any(unit is None for unit in member.root_idxs):
        return None
    places, units = torch.tensor(member.idxs), torch.tensor(member.root_idxs)
    outputs = (function.prune_conv_out_channels, function.prune_linear_out_channels)
    inputs = (function.prune_conv_in_channels, function.prune_linear_in_channels)
    transposed = getattr(layer, "transposed", False)
    if handler in outputs and isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        return Slice(layer, "weight", 1 if transposed else 0, places, units)
    if handler in inputs and isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        if isinstance(layer, nn.modules.conv._ConvNd) and not transposed:
            places = places % layer.weight.shape[1]  # of each group of a convolution
        return Slice(layer, "weight", 0 if transposed else 1, places, units)
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    if isinstance(layer, norms) and layer.weight is not None:
        return Slice(layer, "weight", 0, places, units)
    return None


def _reader(member: Any) -> Reader | None:
    from torch_pruning.pruner import function

    layer, handler = member.dep.layer, member.dep.pruning_fn
    if handler not in (function.prune_conv_in_channels, function.prune_linear_in_channels):
        return None
    if any(unit is None for unit in member.root_idxs):
        return None
    dim = -1 if isinstance(layer, nn.Linear) else 1
    return Reader(layer, dim, torch.tensor(member.idxs), torch.tensor(member.root_idxs))


# -- layers of our own


def _embeddings(model: nn.Module) -> Iterator[Group]:
    """The features of a recommender's tables, which are multiplied with one another, and so go from all of them."""
    for name, tables in model.named_modules():
        if not isinstance(tables, CodeEmbedding):
            continue
        parts = [table for table in tables.tables if isinstance(table, nn.Embedding)]
        width = parts[0].embedding_dim
        reader = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
        features = torch.arange(width)
        places = torch.arange(reader.in_features)  # column after column, then the sum of their products
        slices = [Slice(table, "weight", 1, features, features) for table in parts]
        slices.append(Slice(reader, "weight", 1, places, places % width))
        members = frozenset({name, *(f"{name}.tables.{number}" for number in range(len(parts)))})
        readers = (Reader(reader, -1, places, places % width),)
        yield _own(name, "embedding", members, width, slices, readers)


def _recurrent(model: nn.Module) -> Iterator[Group]:
    """The features of the embedding and the states of each recurrent layer, which the next layer reads."""
    if not any(isinstance(layer, Lstm) for layer in model.modules()):
        return
    if not (isinstance(model, nn.Sequential) and all(isinstance(block, SequenceBlock) for block in model)):
        return
    kinds = (nn.Embedding, Lstm, nn.Linear)
    chain = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    for (name, layer), (_, reader) in pairwise(chain):
        if isinstance(layer, nn.Embedding):
            part: Part = "embedding"
            width = layer.embedding_dim
            units = torch.arange(width)
            slices = [Slice(layer, "weight", 1, units, units)]
        else:
            assert isinstance(layer, Lstm)
            part, width = "states", layer.lstm.hidden_size
            units = torch.arange(width)
            rows = torch.arange(_GATES * width)  # gate after gate
            slices = [Slice(layer.lstm, f"weight_{kind}_l0", 0, rows, rows % width) for kind in ("ih", "hh")]
            slices += [Slice(layer.lstm, f"bias_{kind}_l0", 0, rows, rows % width) for kind in ("ih", "hh")]
            slices.append(Slice(layer.lstm, "weight_hh_l0", 1, units, units))
        if isinstance(reader, Lstm):
            slices.append(Slice(reader.lstm, "weight_ih_l0", 1, units, units))
        else:
            slices.append(Slice(reader, "weight", 1, units, units))
        yield _own(name, part, frozenset({name}), width, slices, (Reader(reader, -1, units, units),))


def _heads(model: nn.Module) -> Iterator[Group]:
    """The heads of attention: rows of queries, keys and values, and the columns that read their mixture."""
    for name, layer in model.named_modules():
        if not isinstance(layer, Attention):
            continue
        places = torch.arange(layer.query.out_features)
        heads = places // layer.head_width
        slices = [Slice(part, "weight", 0, places, heads) for part in (layer.query, layer.key, layer.value)]
        slices += [Slice(part, "bias", 0, places, heads) for part in (layer.query, layer.value)]
        slices.append(Slice(layer.output, "weight", 1, places, heads))
        readers = (Reader(layer.output, -1, places, heads),)
        width = layer.query.out_features // layer.head_width
        yield _own(name, "heads", frozenset({name}), width, slices, readers, size=layer.head_width)


def _own(
    name: str,
    part: Part,
    members: frozenset[str],
    width: int,
    slices: list[Slice],
    readers: tuple[Reader, ...],
    size: int = 1,
) -> Group:
    def remove(units: list[int]) -> None:
        gone = torch.tensor(units)
        for each in slices:
            parameter = each.parameter
            kept = torch.ones(parameter.shape[each.dim], dtype=torch.bool)
            kept[each.places[torch.isin(each.units, gone)]] = False
            left = parameter.detach().index_select(each.dim, kept.nonzero().flatten().to(parameter.device))
            setattr(each.layer, each.attribute, nn.Parameter(left, parameter.requires_grad))
        for layer in dict.fromkeys(each.layer for each in slices):
            follow_widths(layer)

    return Group(name, part, members, width, tuple(slices), readers, remove, size=size)
