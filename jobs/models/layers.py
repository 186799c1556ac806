"""Layers and blocks as pure integers: what a plan needs of a model, without torch.

`jobs.models.build` turns the same records into torch modules, so the sizes planned are the sizes built.
Shapes are those of one sample: (channels, height, width) or (features,).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """A convolution with an odd kernel and padding kernel // 2: it keeps height and width, divided by the stride."""

    inputs: int
    outputs: int
    kernel: int
    bias: bool = True
    stride: int = 1

    def output_shape(self, shape: Shape) -> Shape:
        return (self.outputs, *(-(-size // self.stride) for size in shape[1:]))

    @property
    def params(self) -> int:
        return self.outputs * (self.inputs * self.kernel**2 + self.bias)

    def macs(self, shape: Shape) -> int:
        return self.inputs * self.kernel**2 * prod(self.output_shape(shape))


@dataclass(frozen=True)
class Linear:
    inputs: int
    outputs: int
    bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        return (self.outputs,)

    @property
    def params(self) -> int:
        return self.outputs * (self.inputs + self.bias)

    def macs(self, shape: Shape) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class _Norm:
    """A normalization with a scale and a shift for each channel or feature."""

    width: int

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    @property
    def params(self) -> int:
        return 2 * self.width

    def macs(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Batch normalization (Ioffe & Szegedy 2015) over features, or over the channels of an image (`spatial`).

    Statistics are taken over groups of `group` samples; see jobs/models/invariant.py.
    """

    group: int
    spatial: bool = False


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Group normalization (Wu & He 2018): each sample on its own, channels in `groups`."""

    groups: int


@dataclass(frozen=True)
class _Plain:
    """A layer without parameters that keeps the shape."""

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    @property
    def params(self) -> int:
        return 0

    def macs(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Activation(_Plain):
    name: Literal["relu", "tanh", "gelu", "silu"]


@dataclass(frozen=True)
class Dropout(_Plain):
    p: float


@dataclass(frozen=True)
class MaxPool(_Plain):
    """Halves height and width."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] // 2, shape[2] // 2)


@dataclass(frozen=True)
class GlobalAveragePool(_Plain):
    """The mean over height and width."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1)


@dataclass(frozen=True)
class Flatten(_Plain):
    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x); an empty shortcut is the identity (He, Zhang, Ren & Sun 2016)."""

    body: "tuple[Layer, ...]"
    shortcut: "tuple[Layer, ...]" = ()

    def output_shape(self, shape: Shape) -> Shape:
        return _through(self.body, shape)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in (*self.body, *self.shortcut))

    def macs(self, shape: Shape) -> int:
        return _macs(self.body, shape) + _macs(self.shortcut, shape)


Layer = Conv | Linear | BatchNorm | GroupNorm | Activation | Dropout | MaxPool | GlobalAveragePool | Flatten | Residual


def _through(layers: tuple[Layer, ...], shape: Shape) -> Shape:
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape


def _macs(layers: tuple[Layer, ...], shape: Shape) -> int:
    total = 0
    for layer in layers:
        total += layer.macs(shape)
        shape = layer.output_shape(shape)
    return total


def _activations(layers: tuple[Layer, ...], shape: Shape) -> int:
    total = 0
    for layer in layers:
        if isinstance(layer, Residual):
            total += _activations(layer.body, shape) + _activations(layer.shortcut, shape)
        elif not isinstance(layer, Flatten):
            total += prod(layer.output_shape(shape))
        shape = layer.output_shape(shape)
    return total


def every_layer(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """The layers, and those within residual ones, in the order in which they are built."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from every_layer((*layer.body, *layer.shortcut))


@dataclass(frozen=True)
class Block:
    """Layers that stay together on one worker, whatever the layout."""

    name: str
    layers: tuple[Layer, ...]
    input_shape: Shape

    @property
    def output_shape(self) -> Shape:
        return _through(self.layers, self.input_shape)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass, for one sample."""
        return _macs(self.layers, self.input_shape)

    @property
    def activations(self) -> int:
        """Values that the layers put out for one sample, all held until the backward pass."""
        return _activations(self.layers, self.input_shape)


def chain(input_shape: Shape, parts: list[tuple[str, tuple[Layer, ...]]]) -> tuple[Block, ...]:
    """Blocks one after another, each with the shape that the one before it puts out."""
    blocks: list[Block] = []
    shape = input_shape
    for name, layers in parts:
        blocks.append(Block(name, layers, shape))
        shape = blocks[-1].output_shape
    return tuple(blocks)
