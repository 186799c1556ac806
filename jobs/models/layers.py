"""Layers as pure integers: what a plan needs of a model, without torch.

`jobs.models.build` turns the same records into torch modules, so the sizes planned are the sizes built.
Shapes are those of one sample: (channels, height, width), (features,), or (steps, features).
Layers over steps and codes stand in `jobs.models.sequences`, what puts layers together in `jobs.models.blocks`.

`split` says what tensor parallelism divides (Shoeybi et al. 2019): of a product the outputs ("column"), the inputs
("row"), or the outputs, which are then gathered ("gather"); the rows of an embedding ("rows"); the channels or
features of what lies between a column and a row layer ("channels"). None is whole on every tensor peer.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

Shape = tuple[int, ...]
ActivationName = Literal["relu", "tanh", "gelu", "silu"]


@dataclass
class Value:
    """A tensor on its way through the layers.

    Attributes:
        shape: of one sample.
        divided: each tensor peer has its part of it.
        held: it is kept for the backward pass already, and counted.
    """

    shape: Shape
    divided: bool = False
    held: bool = False


@dataclass
class Tally:
    """What autograd keeps for the backward pass of one sample, in values of the precision trained in.

    Attributes:
        total: all of it.
        split: of it, what tensor parallelism divides.
    """

    total: int = 0
    split: int = 0

    def add(self, count: int, divided: bool) -> None:
        self.total += count
        self.split += count if divided else 0

    def hold(self, value: Value) -> None:
        """Counts a tensor, once however many layers keep it."""
        if not value.held:
            value.held = True
            self.add(prod(value.shape), value.divided)


class Layer:
    """What a plan asks of a layer. The defaults are those of one without parameters that keeps the shape."""

    saves_input: ClassVar[bool] = False
    """The backward pass needs what went in."""
    saves_output: ClassVar[bool] = False
    """The backward pass needs what came out."""

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    @property
    def params(self) -> int:
        return 0

    @property
    def split_params(self) -> int:
        """Of the parameters, those that tensor parallelism divides."""
        return 0

    def macs(self, shape: Shape) -> int:
        """Multiply-accumulates of the forward pass, for one sample."""
        return 0

    def split_macs(self, shape: Shape) -> int:
        return 0

    def tensor_values(self, shape: Shape) -> int:
        """Values of one sample that tensor peers sum or gather in the forward pass."""
        return 0

    def tensor_sums(self, shape: Shape) -> int:
        """How many sums and gathers of tensor peers that is."""
        return int(self.tensor_values(shape) > 0)

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        """What a tensor degree must divide."""
        return ()

    def saved(self, shape: Shape) -> int:
        """Values kept for the backward pass beside input and output."""
        return 0

    def divides(self, divided: bool) -> bool:
        """Whether each tensor peer has a part of the output, given whether it has one of the input."""
        return divided

    def trace(self, x: Value, tally: Tally) -> Value:
        """The output, with what the backward pass will need counted."""
        if self.saves_input:
            tally.hold(x)
        output = Value(self.output_shape(x.shape), self.divides(x.divided))
        tally.add(self.saved(x.shape), output.divided)
        if self.saves_output:
            tally.hold(output)
        return output


class _Product(Layer):
    """A matrix product or convolution."""

    saves_input = True
    inputs: int
    outputs: int
    bias: bool
    split: Literal["column", "row", "gather"] | None

    @property
    def split_params(self) -> int:
        if self.split is None:
            return 0
        return self.params - (self.outputs if self.bias and self.split == "row" else 0)

    def split_macs(self, shape: Shape) -> int:
        return self.macs(shape) if self.split else 0

    def tensor_values(self, shape: Shape) -> int:
        return prod(self.output_shape(shape)) if self.split in ("row", "gather") else 0

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        if self.split is None:
            return ()
        return (self.inputs if self.split == "row" else self.outputs,)

    def divides(self, divided: bool) -> bool:
        return self.split == "column"


@dataclass(frozen=True)
class Conv(_Product):
    """A convolution with an odd kernel and padding kernel // 2: it keeps height and width, divided by the stride."""

    inputs: int
    outputs: int
    kernel: int
    bias: bool = True
    stride: int = 1
    split: Literal["column", "row", "gather"] | None = None

    def output_shape(self, shape: Shape) -> Shape:
        return (self.outputs, *(-(-size // self.stride) for size in shape[1:]))

    @property
    def params(self) -> int:
        return self.outputs * (self.inputs * self.kernel**2 + self.bias)

    def macs(self, shape: Shape) -> int:
        return self.inputs * self.kernel**2 * prod(self.output_shape(shape))


@dataclass(frozen=True)
class Linear(_Product):
    """A product with the last dimension.

    Attributes:
        std: of the normal distribution that the weights begin with, the biases at 0; None: torch's own beginning.
        tied: the weight is that of the model's embedding, and counted there.
    """

    inputs: int
    outputs: int
    bias: bool = True
    split: Literal["column", "row", "gather"] | None = None
    std: float | None = None
    tied: bool = False

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.outputs)

    @property
    def params(self) -> int:
        return self.outputs * (self.inputs * (not self.tied) + self.bias)

    def macs(self, shape: Shape) -> int:
        return self.inputs * prod(self.output_shape(shape))


class _Norm(Layer):
    """A normalization with a scale and a shift for each channel or feature."""

    saves_input = True
    width: int
    split: Literal["channels"] | None

    @property
    def params(self) -> int:
        return 2 * self.width

    @property
    def split_params(self) -> int:
        return self.params if self.split else 0

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return (self.width,) if self.split else ()


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Batch normalization (Ioffe & Szegedy 2015) over features, or over the channels of an image (`spatial`).

    Statistics are taken over groups of `group` samples; see jobs/models/invariant.py.
    """

    width: int
    group: int
    spatial: bool = False
    split: Literal["channels"] | None = None


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Group normalization (Wu & He 2018): each sample on its own, channels in `groups`."""

    width: int
    groups: int
    split: Literal["channels"] | None = None

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return (self.groups,) if self.split else ()

    def saved(self, shape: Shape) -> int:
        return 2 * self.groups  # mean and standard deviation


@dataclass(frozen=True)
class Activation(Layer):
    name: ActivationName

    def trace(self, x: Value, tally: Tally) -> Value:
        output = Value(x.shape, x.divided)
        # The derivatives of relu and tanh are functions of what came out, those of the others of what went in.
        tally.hold(output if self.name in ("relu", "tanh") else x)
        return output


@dataclass(frozen=True)
class Dropout(Layer):
    p: float
    split: Literal["channels"] | None = None

    def saved(self, shape: Shape) -> int:
        return prod(shape)  # the mask


@dataclass(frozen=True)
class MaxPool(Layer):
    """Halves height and width."""

    saves_input = True

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] // 2, shape[2] // 2)

    def saved(self, shape: Shape) -> int:
        return 2 * prod(self.output_shape(shape))  # where each maximum was, as int64


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """The mean over height and width."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1)


@dataclass(frozen=True)
class Flatten(Layer):
    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)

    def trace(self, x: Value, tally: Tally) -> Value:
        return replace(x, shape=self.output_shape(x.shape))  # the same memory
