"""Layers put together, as pure integers: in a series, around a shortcut, and as the blocks that a pipeline is cut into.

See `jobs.models.layers` for what a plan asks of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.models.layers import Layer, Shape, Tally, Value


class _Composite(Layer, ABC):
    """Layers within a layer: its sizes are the sums of theirs."""

    @abstractmethod
    def inner(self) -> tuple[Layer, ...]: ...

    @abstractmethod
    def members(self, shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        """Each layer, with the shape that goes into it."""

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.inner())

    @property
    def split_params(self) -> int:
        return sum(layer.split_params for layer in self.inner())

    def macs(self, shape: Shape) -> int:
        return sum(layer.macs(entering) for layer, entering in self.members(shape))

    def split_macs(self, shape: Shape) -> int:
        return sum(layer.split_macs(entering) for layer, entering in self.members(shape))

    def tensor_values(self, shape: Shape) -> int:
        return sum(layer.tensor_values(entering) for layer, entering in self.members(shape))

    def tensor_sums(self, shape: Shape) -> int:
        return sum(layer.tensor_sums(entering) for layer, entering in self.members(shape))

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return tuple(width for layer in self.inner() for width in layer.tensor_widths)


@dataclass(frozen=True)
class Series(_Composite):
    """Layers one after another."""

    layers: tuple[Layer, ...]

    def inner(self) -> tuple[Layer, ...]:
        return self.layers

    def members(self, shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        for layer in self.layers:
            yield layer, shape
            shape = layer.output_shape(shape)

    def output_shape(self, shape: Shape) -> Shape:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def trace(self, x: Value, tally: Tally) -> Value:
        for layer in self.layers:
            x = layer.trace(x, tally)
        return x


@dataclass(frozen=True)
class Residual(_Composite):
    """body(x) + shortcut(x); an empty shortcut is the identity (He, Zhang, Ren & Sun 2016)."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def inner(self) -> tuple[Layer, ...]:
        return (*self.body, *self.shortcut)

    def members(self, shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        yield from Series(self.body).members(shape)
        yield from Series(self.shortcut).members(shape)

    def output_shape(self, shape: Shape) -> Shape:
        return Series(self.body).output_shape(shape)

    def trace(self, x: Value, tally: Tally) -> Value:
        output = Series(self.body).trace(x, tally)
        Series(self.shortcut).trace(x, tally)
        return Value(output.shape, output.divided)


def every_layer(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """The layers, and those within residual ones, in the order in which they are built."""
    for layer in layers:
        yield layer
        if isinstance(layer, _Composite):
            yield from every_layer(layer.inner())


@dataclass(frozen=True)
class Block:
    """Layers that stay together on one worker, whatever the layout.

    Attributes:
        source: what goes in, as the block before leaves it.
    """

    name: str
    body: Series
    source: Value

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.body.layers

    @property
    def output_shape(self) -> Shape:
        return self.body.output_shape(self.source.shape)

    @property
    def params(self) -> int:
        return self.body.params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass, for one sample."""
        return self.body.macs(self.source.shape)

    def trace(self) -> tuple[Value, Tally]:
        """What comes out, and what is kept for the backward pass: a tensor between two blocks counts once."""
        tally = Tally()
        return self.body.trace(replace(self.source), tally), tally


def chain(input_shape: Shape, parts: list[tuple[str, tuple[Layer, ...]]]) -> tuple[Block, ...]:
    """Blocks one after another, each with what the one before it puts out.

    The input itself is held anyway: it is the batch.
    """
    blocks: list[Block] = []
    value = Value(input_shape, held=True)
    for name, layers in parts:
        blocks.append(Block(name, Series(layers), value))
        value, _ = blocks[-1].trace()
    return tuple(blocks)
