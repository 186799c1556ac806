"""A multi-layer perceptron: for tables and vectors; other shapes are flattened."""

from typing import Literal

from jobs.models.blocks import Block, chain
from jobs.models.inputs import require
from jobs.models.layers import Activation, ActivationName, BatchNorm, Dropout, Flatten, Layer, Linear
from jobs.records import Signature
from jobs.spec.model import MlpArgs

Parts = list[tuple[str, tuple[Layer, ...]]]


def blocks(args: MlpArgs, signature: Signature) -> tuple[Block, ...]:
    """Hidden layers, then the classifier (or, for regression, the output layer). Raises SpecError for codes."""
    require(signature, "mlp", "vector", "image", "sequence")
    shape = signature.input_shape
    parts = perceptron(
        "hidden",
        Flatten().output_shape(shape)[0],
        args.hidden,
        signature.outputs,
        activation=args.activation,
        dropout=args.dropout,
        norm_group=args.norm_group if args.batch_norm else None,
        first=(Flatten(),) if len(shape) > 1 else (),
    )
    return chain(shape, parts)


def perceptron(
    name: str,
    features: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    activation: ActivationName,
    dropout: float,
    norm_group: int | None = None,
    first: tuple[Layer, ...] = (),
) -> Parts:
    """Hidden layers, each a block, and the classifier.

    Tensor parallelism divides them in pairs: the outputs of one layer, then the inputs of the next, so that a pair
    sums once (Shoeybi et al. 2019). Without a partner, a last layer is whole.

    Args:
        name: of the hidden blocks, before their number.
        norm_group: with batch normalization, samples over which it takes its statistics.
        first: layers before the first product.
    """
    parts: Parts = []
    num_paired = (len(hidden) + 1) // 2 * 2
    for index, width in enumerate(hidden):
        split = _split(index, num_paired)
        channels: Literal["channels"] | None = "channels" if split == "column" else None
        layers: list[Layer] = [*first, Linear(features, width, bias=norm_group is None, split=split)]
        if norm_group is not None:
            layers.append(BatchNorm(width, norm_group, split=channels))
        layers.append(Activation(activation))
        if dropout:
            layers.append(Dropout(dropout, split=channels))
        parts.append((f"{name}{index + 1}", tuple(layers)))
        features, first = width, ()
    classifier = Linear(features, outputs, split=_split(len(hidden), num_paired))
    return [*parts, ("classifier", (*first, classifier))]


def _split(index: int, num_paired: int) -> Literal["column", "row"] | None:
    if index >= num_paired:
        return None
    return "row" if index % 2 else "column"
