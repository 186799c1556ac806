"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998), widened at will and for any image size."""

from jobs.errors import SpecError
from jobs.models.layers import (
    Activation,
    BatchNorm,
    Block,
    Conv,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Shape,
    chain,
)
from jobs.spec.model import LenetArgs


def blocks(args: LenetArgs, input_shape: Shape, outputs: int) -> tuple[Block, ...]:
    """Convolutions with pooling, then linear layers, then the classifier. Raises SpecError for non-images."""
    if len(input_shape) != 3:
        raise SpecError.at(
            "model.name",
            f"lenet takes images (channels, height, width), and the data has the shape {input_shape}",
            "lenet",
            "mlp, which takes any shape",
        )
    parts: list[tuple[str, tuple[Layer, ...]]] = []
    shape: Shape = input_shape
    for index, width in enumerate(args.conv_widths, start=1):
        layers: list[Layer] = [Conv(shape[0], width, args.kernel, bias=not args.batch_norm)]
        if args.batch_norm:
            layers.append(BatchNorm(width, args.norm_group, spatial=True))
        layers.append(Activation(args.activation))
        if min(shape[1:]) >= 4:
            layers.append(MaxPool())
        parts.append((f"conv{index}", tuple(layers)))
        shape = chain(shape, parts[-1:])[-1].output_shape
    features = Flatten().output_shape(shape)[0]
    for index, width in enumerate(args.linear_widths, start=1):
        layers = [Flatten()] if index == 1 else []
        layers.append(Linear(features, width, bias=not args.batch_norm))
        if args.batch_norm:
            layers.append(BatchNorm(width, args.norm_group))
        layers.append(Activation(args.activation))
        if args.dropout:
            layers.append(Dropout(args.dropout))
        parts.append((f"linear{index}", tuple(layers)))
        features = width
    classifier: tuple[Layer, ...] = (Linear(features, outputs),)
    parts.append(("classifier", classifier if args.linear_widths else (Flatten(), *classifier)))
    return chain(input_shape, parts)
