"""Residual networks (He, Zhang, Ren & Sun 2016): the paper's small ones for small images, and ResNet-18.

Depths 8, 20 and 56 are 6n + 2 with three stages of n blocks (section 4.2); 18 has four stages of two (section 4.1).
Where a block changes the shape, its shortcut is a projection (option B), so that its channels can be pruned.
"""

from jobs.errors import SpecError
from jobs.models.layers import (
    Activation,
    BatchNorm,
    Block,
    Conv,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    Layer,
    Linear,
    MaxPool,
    Residual,
    Shape,
    chain,
)
from jobs.spec.model import ResnetArgs

LARGE_SIDE = 64
"""From this side on, ResNet-18 begins as on ImageNet: a 7×7 convolution of stride 2, and pooling."""


def blocks(args: ResnetArgs, input_shape: Shape, outputs: int) -> tuple[Block, ...]:
    """A stem, residual blocks, the mean over places, the classifier. Raises SpecError for non-images."""
    if len(input_shape) != 3:
        raise SpecError.at(
            "model.name",
            f"resnet takes images (channels, height, width), and the data has the shape {input_shape}",
            "resnet",
            "mlp, which takes any shape",
        )
    stages = [2, 2, 2, 2] if args.depth == 18 else [(args.depth - 2) // 6] * 3
    width = args.width or (64 if args.depth == 18 else 16)
    large = args.depth == 18 and min(input_shape[1:]) >= LARGE_SIDE
    kernel, stride = (7, 2) if large else (3, 1)
    stem: list[Layer] = [
        Conv(input_shape[0], width, kernel, bias=False, stride=stride),
        _norm(args, width),
        Activation("relu"),
    ]
    parts: list[tuple[str, tuple[Layer, ...]]] = [("stem", (*stem, MaxPool()) if large else tuple(stem))]
    channels = width
    for stage, count in enumerate(stages):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            parts.append((f"stage{stage + 1}_block{block + 1}", _basic(args, channels, width << stage, stride)))
            channels = width << stage
    parts.append(("classifier", (GlobalAveragePool(), Flatten(), Linear(channels, outputs))))
    return chain(input_shape, parts)


def _basic(args: ResnetArgs, inputs: int, outputs: int, stride: int) -> tuple[Layer, ...]:
    body: tuple[Layer, ...] = (
        Conv(inputs, outputs, 3, bias=False, stride=stride),
        _norm(args, outputs),
        Activation("relu"),
        Conv(outputs, outputs, 3, bias=False),
        _norm(args, outputs),
    )
    same = inputs == outputs and stride == 1
    shortcut: tuple[Layer, ...] = (
        () if same else (Conv(inputs, outputs, 1, bias=False, stride=stride), _norm(args, outputs))
    )
    return Residual(body, shortcut), Activation("relu")


def _norm(args: ResnetArgs, width: int) -> Layer:
    if args.norm == "batch":
        return BatchNorm(width, args.norm_group, spatial=True)
    return GroupNorm(width, groups=min(8, width))
