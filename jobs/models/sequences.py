"""Layers over steps and over codes, as pure integers; see `jobs.models.layers`.

A block of a model over steps takes and gives a pair: values (steps, features) a sample, and how many of the steps are
real. Shapes are those of the values; whatever follows the last real step of a sample never changes its outputs.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from jobs.models.layers import Layer, Shape, Tally, Value

ROWS = 8
"""Tables of embeddings are padded to a multiple of so many rows, so that tensor parallelism divides any vocabulary."""


def padded(num_codes: int) -> int:
    """Rows of the table for so many codes.

    >>> padded(30)
    32
    """
    return -(-num_codes // ROWS) * ROWS


@dataclass(frozen=True)
class TokenInput(Layer):
    """Finds the number of real steps: tokens beyond the end are 0."""

    def trace(self, x: Value, tally: Tally) -> Value:
        return x


@dataclass(frozen=True)
class SequenceInput(Layer):
    """Takes off the feature that says where there is a step, and counts the real ones by it."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] - 1)


@dataclass(frozen=True)
class Embedding(Layer):
    """A vector for each code.

    Attributes:
        std: of the normal distribution that the vectors begin with.
    """

    rows: int
    width: int
    std: float
    split: Literal["rows"] | None = None

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape, self.width)

    @property
    def params(self) -> int:
        return self.rows * self.width

    @property
    def split_params(self) -> int:
        return self.params if self.split else 0

    def tensor_values(self, shape: Shape) -> int:
        return prod(self.output_shape(shape)) if self.split else 0

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return (self.rows,) if self.split else ()


@dataclass(frozen=True)
class CodeEmbedding(Layer):
    """A table for each column of codes, all of one width: (columns,) → (columns, width)."""

    tables: tuple[Embedding, ...]

    def output_shape(self, shape: Shape) -> Shape:
        return (len(self.tables), self.tables[0].width)

    @property
    def params(self) -> int:
        return sum(table.params for table in self.tables)

    @property
    def split_params(self) -> int:
        return sum(table.split_params for table in self.tables)

    def tensor_values(self, shape: Shape) -> int:
        return sum(table.tensor_values(()) for table in self.tables)

    def tensor_sums(self, shape: Shape) -> int:
        return sum(table.tensor_sums(()) for table in self.tables)

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return tuple(rows for table in self.tables for rows in table.tensor_widths)


@dataclass(frozen=True)
class Interactions(Layer):
    """The vectors of all columns, then the sum of their products in pairs: (columns, width) → ((columns + 1) · width,).

    A perceptron is slow to learn products, and of two columns the product is matrix factorization (He & Chua 2017;
    Rendle, Krichene, Zhang & Anderson 2020).
    """

    saves_input = True

    def output_shape(self, shape: Shape) -> Shape:
        return ((shape[0] + 1) * shape[1],)

    def saved(self, shape: Shape) -> int:
        return shape[1]  # the sum over the columns


@dataclass(frozen=True)
class Positions(Layer):
    """Adds a learnt vector for each position.

    Attributes:
        std: of the normal distribution that the vectors begin with.
    """

    length: int
    width: int
    std: float

    @property
    def params(self) -> int:
        return self.length * self.width


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalization (Ba, Kiros & Hinton 2016): each step on its own."""

    width: int
    saves_input = True

    @property
    def params(self) -> int:
        return 2 * self.width

    def saved(self, shape: Shape) -> int:
        return 2 * shape[0]  # mean and standard deviation


@dataclass(frozen=True)
class Attention(Layer):
    """Scaled dot-product attention in several heads (Vaswani et al. 2017), divided by heads.

    Each step sees the real steps of its sample; `causal`: itself and the steps before it. Keys have no bias, since it
    would add the same to all that a step compares.

    Attributes:
        std: of the normal distribution that the weights begin with.
        output_std: of those of the output.
    """

    width: int
    heads: int
    causal: bool
    std: float
    output_std: float

    @property
    def params(self) -> int:
        return 4 * self.width**2 + 3 * self.width

    @property
    def split_params(self) -> int:
        return self.params - self.width  # the output's bias is whole

    def macs(self, shape: Shape) -> int:
        return 4 * prod(shape) * self.width + 2 * shape[0] * prod(shape)

    def split_macs(self, shape: Shape) -> int:
        return self.macs(shape)

    def tensor_values(self, shape: Shape) -> int:
        return prod(shape)

    @property
    def tensor_widths(self) -> tuple[int, ...]:
        return (self.heads,)

    def trace(self, x: Value, tally: Tally) -> Value:
        tally.hold(x)
        # Queries, keys, values, their mixture, and the logarithm of each softmax's sum: torch's kernels keep no scores.
        tally.add(4 * prod(x.shape) + self.heads * x.shape[0], divided=True)
        if not self.causal:
            tally.add(x.shape[0], divided=False)  # which steps are real
        return Value(x.shape)


@dataclass(frozen=True)
class Lstm(Layer):
    """One layer of long short-term memory (Hochreiter & Schmidhuber 1997), from left to right."""

    inputs: int
    hidden: int
    saves_output = True

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.hidden)

    @property
    def params(self) -> int:
        return 4 * self.hidden * (self.inputs + self.hidden + 2)

    def macs(self, shape: Shape) -> int:
        return shape[0] * 4 * self.hidden * (self.inputs + self.hidden)

    def saved(self, shape: Shape) -> int:
        # The input, steps first; oneDNN's workspace with gates, states and their gradients, in rows of 64 bytes
        # (measured).
        return prod(shape) + 15 * shape[0] * (-(-self.hidden // 16) * 16)


@dataclass(frozen=True)
class MeanSteps(Layer):
    """The mean over the real steps."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[1],)

    def saved(self, shape: Shape) -> int:
        return shape[0]  # which steps are real


@dataclass(frozen=True)
class LastStep(Layer):
    """The last real step."""

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[1],)
