"""A model of a user's own: its children are the blocks of a pipeline."""

from math import prod

import torch
from torch import nn


def network(input_shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), width), nn.Tanh()),
        nn.Sequential(nn.Linear(width, width), nn.Tanh()),
        nn.Linear(width, outputs),
    )


class Paced(nn.Module):
    """Keeps the largest value that it has seen, in a buffer that is no running mean."""

    highest: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("highest", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.highest.copy_(torch.maximum(self.highest, x.detach().max()))
        return x / (1.0 + self.highest)


def normalizing(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A network with stock batch normalization, and with a layer that keeps a state of its own kind."""
    channels = input_shape[0]
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.GELU(), Paced()),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * (input_shape[1] - 2) * (input_shape[2] - 2), outputs)),
    )
