"""Layers and blocks as pure integers: what a plan needs of a model, without torch.

`jobs.models.build` turns the same records into torch modules, so the sizes planned are the sizes built.
Shapes are those of one sample: (channels, height, width) or (features,).
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """A convolution that keeps height and width: stride 1, padding kernel // 2."""

    inputs: int
    outputs: int
    kernel: int
    bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        return (self.outputs, *shape[1:])

    @property
    def params(self) -> int:
        return self.outputs * (self.inputs * self.kernel**2 + self.bias)

    def macs(self, shape: Shape) -> int:
        return self.outputs * self.inputs * self.kernel**2 * prod(shape[1:])


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
class BatchNorm:
    """Batch normalization (Ioffe & Szegedy 2015) over features, or over the channels of an image (`spatial`).

    Statistics are taken over groups of `group` samples; see jobs/models/invariant.py.
    """

    width: int
    group: int
    spatial: bool = False

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    @property
    def params(self) -> int:
        return 2 * self.width

    def macs(self, shape: Shape) -> int:
        return 0


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
class Flatten(_Plain):
    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)


Layer = Conv | Linear | BatchNorm | Activation | Dropout | MaxPool | Flatten


@dataclass(frozen=True)
class Block:
    """Layers that stay together on one worker, whatever the layout."""

    name: str
    layers: tuple[Layer, ...]
    input_shape: Shape

    @property
    def output_shape(self) -> Shape:
        shape = self.input_shape
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass, for one sample."""
        total, shape = 0, self.input_shape
        for layer in self.layers:
            total += layer.macs(shape)
            shape = layer.output_shape(shape)
        return total

    @property
    def activations(self) -> int:
        """Values that the layers put out for one sample, all held until the backward pass."""
        total, shape = 0, self.input_shape
        for layer in self.layers:
            shape = layer.output_shape(shape)
            total += prod(shape) if not isinstance(layer, Flatten) else 0
        return total


def chain(input_shape: Shape, parts: list[tuple[str, tuple[Layer, ...]]]) -> tuple[Block, ...]:
    """Blocks one after another, each with the shape that the one before it puts out."""
    blocks: list[Block] = []
    shape = input_shape
    for name, layers in parts:
        blocks.append(Block(name, layers, shape))
        shape = blocks[-1].output_shape
    return tuple(blocks)
