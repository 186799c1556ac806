"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998), widened at will and for any image size."""

from jobs.models.blocks import Block, chain
from jobs.models.inputs import require
from jobs.models.layers import Activation, BatchNorm, Conv, Flatten, Layer, MaxPool, Shape
from jobs.models.mlp import Parts, perceptron
from jobs.records import Signature
from jobs.spec.model import LenetArgs


def blocks(args: LenetArgs, signature: Signature) -> tuple[Block, ...]:
    """Convolutions with pooling, then linear layers, then the classifier. Raises SpecError for non-images."""
    require(signature, "lenet", "image")
    parts: Parts = []
    shape: Shape = signature.input_shape
    for index, width in enumerate(args.conv_widths, start=1):
        layers: list[Layer] = [Conv(shape[0], width, args.kernel, bias=not args.batch_norm)]
        if args.batch_norm:
            layers.append(BatchNorm(width, args.norm_group, spatial=True))
        layers.append(Activation(args.activation))
        if min(shape[1:]) >= 4:
            layers.append(MaxPool())
        parts.append((f"conv{index}", tuple(layers)))
        shape = chain(shape, parts[-1:])[-1].output_shape
    parts += perceptron(
        "linear",
        Flatten().output_shape(shape)[0],
        args.linear_widths,
        signature.outputs,
        activation=args.activation,
        dropout=args.dropout,
        norm_group=args.norm_group if args.batch_norm else None,
        first=(Flatten(),),
    )
    return chain(signature.input_shape, parts)
