"""What compression may take from our own families, by the names of the modules that will be built. Pure integers.

`jobs.compress.groups` finds the same in the modules themselves; a plan needs it before there are any.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from jobs.models.blocks import Block, Residual
from jobs.models.layers import Conv, Layer, Linear
from jobs.models.registry import blocks_of
from jobs.models.sequences import Attention, CodeEmbedding, Embedding, Lstm
from jobs.records import Signature
from jobs.spec.compress import Part
from jobs.spec.model import LstmModel, OwnModel, RecommenderModel, ResnetModel, TransformerModel

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Prunable:
    """A layer of which pruning may remove something.

    Attributes:
        name: of the module.
        part: what it consists of.
        width: of how many.
        size: features that each of them has: of a head, its width.
    """

    name: str
    part: Part
    width: int
    size: int = 1


def prunable_layers(model: OwnModel, signature: Signature) -> tuple[Prunable, ...]:
    """Every layer that structured pruning may make smaller; empty for a model without hidden layers.

    What a residual connection adds up shrinks together, and stands here layer by layer.
    Raises SpecError for data that the family does not take.
    """
    blocks = blocks_of(model, signature)
    hidden = [pair for block in blocks[:-1] for pair in _named(block)]
    match model:
        case ResnetModel():
            return tuple(Prunable(name, "channels", layer.outputs) for name, layer in hidden if isinstance(layer, Conv))
        case TransformerModel():
            return tuple(_of_transformer(hidden, model.args.layers))
        case LstmModel():
            return tuple(_of_lstm(hidden))
        case RecommenderModel():
            tables = next(layer for _, layer in hidden if isinstance(layer, CodeEmbedding)).tables
            name = next(name for name, layer in hidden if isinstance(layer, CodeEmbedding))
            return (Prunable(name, "embedding", tables[0].width), *_channels(hidden))
    return tuple(_channels(hidden))


def layer_names(model: OwnModel, signature: Signature) -> tuple[str, ...]:
    """The names of all blocks, and of all layers in them."""
    names: list[str] = []
    for block in blocks_of(model, signature):
        names.append(block.name)
        for name, layer in _named(block):
            names.append(name)
            match layer:
                case Attention():
                    names += [f"{name}.{part}" for part in ("query", "key", "value", "output")]
                case Lstm():
                    names.append(f"{name}.lstm")
                case CodeEmbedding():
                    names += [f"{name}.tables.{number}" for number in range(len(layer.tables))]
    return tuple(names)


def linear_sides(model: OwnModel, signature: Signature, *, convolutions: bool) -> tuple[int, ...]:
    """The smaller side of each layer that a low rank may replace."""
    found: list[int] = []
    for block in blocks_of(model, signature):
        for _, layer in _named(block):
            match layer:
                case Linear(tied=False):
                    found.append(min(layer.inputs, layer.outputs))
                case Conv() if convolutions:
                    found.append(min(layer.inputs * layer.kernel**2, layer.outputs))
                case Attention():
                    found += [layer.width] * 4
    return tuple(found)


def matches(name: str, wanted: Iterable[str]) -> bool:
    """Whether a module is one of those wanted, or within one.

    >>> matches("layer1.0.body.1", ["layer1"]), matches("layer10", ["layer1"])
    (True, False)
    """
    return any(name == each or name.startswith(f"{each}.") for each in wanted)


def _named(block: Block) -> Iterator[tuple[str, Layer]]:
    """Layers by the names that `jobs.models.build` gives their modules."""

    def walk(prefix: str, layers: tuple[Layer, ...]) -> Iterator[tuple[str, Layer]]:
        for index, layer in enumerate(layers):
            name = f"{prefix}.{index}"
            yield name, layer
            if isinstance(layer, Residual):
                yield from walk(f"{name}.body", layer.body)
                yield from walk(f"{name}.shortcut", layer.shortcut)

    return walk(block.name, block.layers)


def _channels(hidden: list[tuple[str, Layer]]) -> Iterator[Prunable]:
    for name, layer in hidden:
        match layer:
            case Conv():
                yield Prunable(name, "channels", layer.outputs)
            case Linear():
                yield Prunable(name, "neurons", layer.outputs)


def _of_lstm(hidden: list[tuple[str, Layer]]) -> Iterator[Prunable]:
    for name, layer in hidden:
        match layer:
            case Embedding():
                yield Prunable(name, "embedding", layer.width)
            case Lstm():
                yield Prunable(name, "states", layer.hidden)


def _of_transformer(hidden: list[tuple[str, Layer]], num_layers: int) -> Iterator[Prunable]:
    """What is added up along the residual stream keeps its width."""
    for name, layer in hidden:
        match layer:
            case Attention():
                yield Prunable(name, "heads", layer.heads, size=layer.width // layer.heads)
            case Linear(split="column"):
                yield Prunable(name, "neurons", layer.outputs)
    yield Prunable("layers", "layers", num_layers)
