"""Residual networks (He, Zhang, Ren & Sun 2016): the paper's small ones for small images, and ResNet-18.

Depths 8, 20 and 56 are 6n + 2 with three stages of n blocks (section 4.2); 18 has four stages of two (section 4.1).
Where a block changes the shape, its shortcut is a projection (option B), so that its channels can be pruned.
"""

from typing import Literal

from jobs.models.blocks import Block, Residual, chain
from jobs.models.inputs import require
from jobs.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    Layer,
    Linear,
    MaxPool,
)
from jobs.records import Signature
from jobs.spec.model import ResnetArgs

LARGE_SIDE = 64
"""From this side on, ResNet-18 begins as on ImageNet: a 7×7 convolution of stride 2, and pooling."""


def blocks(args: ResnetArgs, signature: Signature) -> tuple[Block, ...]:
    """A stem, residual blocks, the mean over places, the classifier. Raises SpecError for non-images."""
    require(signature, "resnet", "image")
    input_shape, outputs = signature.input_shape, signature.outputs
    stages = [2, 2, 2, 2] if args.depth == 18 else [(args.depth - 2) // 6] * 3
    width = args.width or (64 if args.depth == 18 else 16)
    large = args.depth == 18 and min(input_shape[1:]) >= LARGE_SIDE
    kernel, stride = (7, 2) if large else (3, 1)
    stem: list[Layer] = [
        Conv(input_shape[0], width, kernel, bias=False, stride=stride),
        _norm(args, width),
        Activation(args.activation),
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
    """Tensor parallelism divides the channels between the two convolutions."""
    body: tuple[Layer, ...] = (
        Conv(inputs, outputs, 3, bias=False, stride=stride, split="column"),
        _norm(args, outputs, split="channels"),
        Activation(args.activation),
        Conv(outputs, outputs, 3, bias=False, split="row"),
        _norm(args, outputs),
    )
    same = inputs == outputs and stride == 1
    shortcut: tuple[Layer, ...] = (
        () if same else (Conv(inputs, outputs, 1, bias=False, stride=stride), _norm(args, outputs))
    )
    return Residual(body, shortcut), Activation(args.activation)


def _norm(args: ResnetArgs, width: int, split: Literal["channels"] | None = None) -> Layer:
    if args.norm == "batch":
        return BatchNorm(width, args.norm_group, spatial=True, split=split)
    return GroupNorm(width, groups=min(8, width), split=split)
