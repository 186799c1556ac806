"""The layers that torch does not have, as torch modules.

A block of a model over steps takes and gives a pair (x, lengths): values (batch, steps, features), and how many of the
steps of each sample are real, (batch,) int64. Steps beyond them never change what comes of a real one.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

Pair = tuple[torch.Tensor, torch.Tensor]


def present(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """(batch, steps): which steps are real."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


class TokenInput(nn.Module):
    """(batch, steps) int64 → the same, and its lengths. A sample without tokens counts as one of padding."""

    def forward(self, tokens: torch.Tensor) -> Pair:
        return tokens, (tokens != 0).sum(dim=1).clamp(min=1)


class SequenceInput(nn.Module):
    """(batch, steps, features + 1) → (batch, steps, features), and the lengths that the last feature tells."""

    def forward(self, x: torch.Tensor) -> Pair:
        return x[..., :-1], (x[..., -1] > 0).sum(dim=1).clamp(min=1)


class OverSteps(nn.Module):
    """A layer that needs to know which steps are real: forward(x, lengths)."""


class SequenceBlock(nn.Sequential):
    """Layers over steps, one after another.

    The first block of a model begins with an input layer, which makes the pair; the last gives the outputs alone.

    Args:
        last: whether this is the last block.
    """

    def __init__(self, *layers: nn.Module, last: bool) -> None:
        super().__init__(*layers)
        self.last = last

    def forward(self, state: torch.Tensor | Pair) -> torch.Tensor | Pair:
        layers = list(self)
        x, lengths = state if isinstance(state, tuple) else layers.pop(0)(state)
        x = pass_through(layers, x, lengths)
        return x if self.last else (x, lengths)


def pass_through(layers: "list[nn.Module] | nn.Sequential", x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sends x through layers, giving the lengths to those that need them."""
    for layer in layers:
        x = layer(x, lengths) if isinstance(layer, OverSteps) else layer(x)
    return x


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class ResidualOverSteps(OverSteps):
    """x + body(x)."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return x + pass_through(self.body, x, lengths)


class Attention(OverSteps):
    """Scaled dot-product attention in heads; see `jobs.models.sequences.Attention`.

    The number of heads follows from the queries' width, so that a tensor peer's part works as the whole does.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.head_width, self.causal = width // heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for part in (self.query, self.key, self.value):
            part.split = "column"  # type: ignore[assignment]
        self.output.split = "row"  # type: ignore[assignment]

    def extra_repr(self) -> str:
        return f"head_width={self.head_width}, causal={self.causal}"

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        heads = self.query.out_features // self.head_width
        query, key, value = (
            part(x).unflatten(2, (heads, self.head_width)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        # Padding is on the right, so what looks only to the left never sees it.
        mask = None if self.causal else present(lengths, x.shape[1])[:, None, None]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Lstm(nn.Module):
    """(batch, steps, inputs) → (batch, steps, hidden), from left to right."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Positions(nn.Module):
    """Adds a learnt vector for each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight[: x.shape[1]]


class MeanSteps(OverSteps):
    """The mean over the real steps: (batch, steps, width) → (batch, width)."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = present(lengths, x.shape[1])[..., None].to(x.dtype)
        return (x * real).sum(dim=1) / lengths[:, None].to(x.dtype)


class LastStep(OverSteps):
    """The last real step: (batch, steps, width) → (batch, width)."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        places = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return x.gather(1, places).squeeze(1)


class CodeEmbedding(nn.Module):
    """(batch, columns) int64 → (batch, columns, width): each column from its own table."""

    def __init__(self, tables: Iterable[nn.Module]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(tables)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.stack([table(codes[:, column]) for column, table in enumerate(self.tables)], dim=1)


class Interactions(nn.Module):
    """(batch, columns, width) → (batch, (columns + 1) · width): the columns, and the sum of their products in pairs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Σ_{i<j} x_i x_j = ((Σ x_i)² − Σ x_i²) / 2  (Rendle 2010, "Factorization Machines", lemma 3.1)
        products = (x.sum(dim=1).square() - x.square().sum(dim=1)) / 2
        return torch.cat([x.flatten(1), products], dim=1)
