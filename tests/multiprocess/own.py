"""A model of a user's own: its children are the blocks of a pipeline."""

from math import prod

from torch import nn


def network(input_shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), width), nn.Tanh()),
        nn.Sequential(nn.Linear(width, width), nn.Tanh()),
        nn.Linear(width, outputs),
    )
