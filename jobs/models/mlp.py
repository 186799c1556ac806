"""A multi-layer perceptron: for tables and vectors; other shapes are flattened."""

from jobs.models.layers import Activation, BatchNorm, Block, Dropout, Flatten, Layer, Linear, Shape, chain
from jobs.spec.model import MlpArgs


def blocks(args: MlpArgs, input_shape: Shape, outputs: int) -> tuple[Block, ...]:
    """Hidden layers, then the classifier (or, for regression, the output layer)."""
    parts: list[tuple[str, tuple[Layer, ...]]] = []
    first: tuple[Layer, ...] = (Flatten(),) if len(input_shape) > 1 else ()
    features = Flatten().output_shape(input_shape)[0]
    for index, width in enumerate(args.hidden, start=1):
        layers: list[Layer] = [*first, Linear(features, width, bias=not args.batch_norm)]
        if args.batch_norm:
            layers.append(BatchNorm(width, args.norm_group))
        layers.append(Activation(args.activation))
        if args.dropout:
            layers.append(Dropout(args.dropout))
        parts.append((f"hidden{index}", tuple(layers)))
        features, first = width, ()
    parts.append(("classifier", (*first, Linear(features, outputs))))
    return chain(input_shape, parts)
