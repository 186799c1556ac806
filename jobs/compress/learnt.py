"""Layers that compute as if in 8 bits while they train, and learn how far their steps reach.

Learnt step size quantization (LSQ: Esser et al. 2020, "Learned Step Size Quantization"):

    x̂ = s · clip(round(x / s) + z, lowest, highest) − s · z

The gradient passes the rounding as if it were not there, and reaches the step s through it:
∂x̂/∂s = round(x/s) − x/s within the range, and the bound beyond it. It is scaled by 1/√(n · highest), n values a step.
Here s = s₀ · exp(θ), with s₀ from calibration and θ learnt from 0: steps stay positive, weight decay draws them to
where they began, and an optimizer's rate means a share of the step; the gradient of θ is divided by s₀² so that its
share is LSQ's. The zero point z stays as calibrated: 0 behind a relu.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from jobs.compress.norms import LAYERS, Normed, gain_of, normed_layers

WEIGHT_LEVELS = 63
"""Of 7 bits with a sign: what no kernel saturates with; see `jobs.compress.integers`."""
TABLE_LEVELS = 127
_ACTIVATION_LEVELS = 255
_SMALLEST_STEP = 1e-8


class Step(nn.Module):
    """The learnt step of one tensor, or of each of its slices along a dimension.

    Args:
        first: s₀, broadcast against the tensor.
        lowest: of the integers, before the zero point is taken off.
        zero_point: z.
        count: values that share a step.
    """

    first: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, first: torch.Tensor, lowest: int, highest: int, zero_point: int, count: int) -> None:
        super().__init__()
        first = first.detach().float().clamp(min=_SMALLEST_STEP)
        self.lowest, self.highest, self.damping = lowest, highest, 1.0 / sqrt(max(1, count) * highest)
        self.theta = nn.Parameter(torch.zeros_like(first))
        self.register_buffer("first", first)
        self.register_buffer("zero_point", torch.tensor(float(zero_point)))

    @property
    def scale(self) -> torch.Tensor:
        return self.first * self.theta.float().exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = self.damping / self.first**2
        theta = self.theta.float()
        damped = theta * share  # the value of theta, and a gradient that is scaled
        step = self.first * (damped + (theta - damped).detach()).exp()
        scaled = (x.float() / step).clamp(self.lowest - self.zero_point, self.highest - self.zero_point)
        rounded = scaled + (scaled.round() - scaled).detach()
        return (rounded * step).to(x.dtype)


def _rounded(values: torch.Tensor, step: Step | None) -> torch.Tensor:
    return values if step is None else step(values)


def weight_step(weight: torch.Tensor, dims: tuple[int, ...], levels: int) -> Step:
    """Symmetric steps for a weight, shared over `dims`."""
    largest = weight.detach().abs().amax(dim=dims, keepdim=True)
    return Step(largest / levels, -levels, levels, 0, weight.numel() // largest.numel())


def activation_step(low: float, high: float, values: int) -> Step:
    """A step for activations between `low` and `high`, of which a sample has `values`; unsigned, zero exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    first = max((high - low) / _ACTIVATION_LEVELS, _SMALLEST_STEP)
    return Step(torch.tensor([first]), 0, _ACTIVATION_LEVELS, round(-low / first), values)


@dataclass(frozen=True)
class Observed:
    """What the input of a layer was on calibration samples.

    Attributes:
        low, high: its range.
        values: of a sample.
        source: the same number for layers that take the very same tensor, as the parts of an attention do.
    """

    low: float
    high: float
    values: int
    source: int


class LearntLinear(nn.Linear):
    """A linear layer whose weight and input are rounded to 8 bits."""

    def __init__(self, layer: nn.Linear, observed: Observed) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_step: Step | None = weight_step(layer.weight, (1,), WEIGHT_LEVELS)
        self.input_step: Step | None = activation_step(observed.low, observed.high, observed.values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(_rounded(x, self.input_step), _rounded(self.weight, self.weight_step), self.bias)


class LearntConv(nn.Conv2d):
    """A convolution whose weight and input are rounded to 8 bits."""

    def __init__(self, layer: nn.Conv2d, observed: Observed) -> None:
        nn.Module.__init__(self)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(layer, name))
        self.transposed, self.output_padding, self.padding_mode = False, layer.output_padding, layer.padding_mode
        self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_step: Step | None = weight_step(layer.weight, (1, 2, 3), WEIGHT_LEVELS)
        self.input_step: Step | None = activation_step(observed.low, observed.high, observed.values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(_rounded(x, self.input_step), _rounded(self.weight, self.weight_step), self.bias)


class LearntEmbedding(nn.Embedding):
    """A table whose columns are rounded to 8 bits; one that is a classifier too, as a whole and to 7."""

    def __init__(self, layer: nn.Embedding, tied: bool) -> None:
        nn.Module.__init__(self)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"):
            setattr(self, name, getattr(layer, name))
        self.sparse, self.weight = False, layer.weight
        self.weight_step: Step | None = (
            weight_step(layer.weight, (0, 1), WEIGHT_LEVELS) if tied else weight_step(layer.weight, (0,), TABLE_LEVELS)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, _rounded(self.weight, self.weight_step))


def learnable(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """The layers of a model that can be replaced, as (parent, name in it, layer)."""
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) in kinds
    ]


def observe(module: nn.Module, batches: Iterator[torch.Tensor]) -> dict[nn.Module, Observed]:
    """The inputs of linear layers and convolutions over some batches. The module is left as it was."""
    found: dict[nn.Module, Observed] = {}
    taken: list[torch.Tensor] = []  # held, so that none is another one's successor in memory

    def note(layer: nn.Module) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
            x = inputs[0]
            source = next((place for place, other in enumerate(taken) if other is x), len(taken))
            if source == len(taken):
                taken.append(x)
            low, high = (float(end) for end in x.aminmax())
            before = found.get(layer, Observed(low, high, x.numel() // len(x), source))
            found[layer] = replace(before, low=min(low, before.low), high=max(high, before.high))

        return hook

    layers = [layer for _, _, layer in learnable(module) if not isinstance(layer, nn.Embedding)]
    hooks = [layer.register_forward_hook(note(layer)) for layer in layers]
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
                taken[:] = [torch.empty(0)] * len(taken)  # numbers stay those of the first batch
    finally:
        for hook in hooks:
            hook.remove()
    return found


def learn_steps(module: nn.Module, seen: dict[nn.Module, Observed]) -> int:
    """Replaces the layers of a model, in place, by ones that round; how many. They share the parameters.

    Layers that take the same tensor round it with one step, and a classifier that is the embedding has the
    embedding's: in the file it is one tensor.
    """
    layers = learnable(module)
    weights = [layer.weight for _, _, layer in layers]
    steps: dict[int, Step | None] = {}
    tables: dict[int, Step | None] = {}
    products: list[LearntLinear | LearntConv] = []
    count = 0
    for parent, name, layer in layers:
        if isinstance(layer, nn.Embedding):
            tied = sum(weight is layer.weight for weight in weights) > 1
            table = LearntEmbedding(layer, tied)
            tables[id(layer.weight)] = table.weight_step
            _replace(parent, name, layer, table)
        elif layer in seen:
            kind = LearntLinear if isinstance(layer, nn.Linear) else LearntConv
            product = kind(layer, seen[layer])  # type: ignore[arg-type]
            product.input_step = steps.setdefault(seen[layer].source, product.input_step)
            products.append(product)
            _replace(parent, name, layer, product)
        else:
            continue  # no forward pass reaches it
        count += 1
    for product in products:
        product.weight_step = tables.get(id(product.weight), product.weight_step)
    return count


def _replace(parent: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    if hasattr(old, "split"):
        new.split = old.split
    setattr(parent, name, new)


def fold_norms(module: nn.Module) -> list[Normed]:
    """Takes batch normalization into the layer before it, in place: exact in evaluation. What was folded.

    The runtime would do it too, but then the weights in the file would not be the ones whose steps are known.
    """
    found = list(normed_layers(module, (LearntLinear, LearntConv, *LAYERS)))
    for each in found:
        _fold(module.get_submodule(each.layer), each.norm)
        module.set_submodule(each.name, nn.Identity())
    return found


def _fold(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        gain = gain_of(norm)
        bias = torch.zeros_like(gain) if layer.bias is None else layer.bias
        shape = (-1, *([1] * (layer.weight.dim() - 1)))
        layer.weight = nn.Parameter(layer.weight * gain.view(shape))
        layer.bias = nn.Parameter((bias - norm.running_mean) * gain + norm.bias)
        if isinstance(layer, LearntLinear | LearntConv):
            # A step per channel grows with the channel: the integers stay what they were, up to their sign.
            step = layer.weight_step
            assert step is not None
            scale = step.scale.detach() * gain.abs().clamp(min=_SMALLEST_STEP).view(shape)
            layer.weight_step = Step(scale, step.lowest, step.highest, 0, 1)


@dataclass(frozen=True)
class Scales:
    """The steps of one product, as the file needs them.

    Attributes:
        weight: integers times steps, as exported: (outputs, inputs, …).
        weight_scales: (outputs,), or (1,) for all.
        input_scale, zero_point: of the layer's input; no scale for a table of embeddings.
    """

    weight: torch.Tensor
    weight_scales: torch.Tensor
    input_scale: float | None
    zero_point: int


def bake(module: nn.Module) -> list[Scales]:
    """Puts the rounded weights into the layers and ends the rounding, in place; gives the steps, in order."""
    layers = [m for m in module.modules() if isinstance(m, LearntLinear | LearntConv | LearntEmbedding)]
    baked: dict[int, nn.Parameter] = {}
    found = []
    with torch.no_grad():
        for layer in layers:
            assert layer.weight_step is not None
            key = id(layer.weight)
            if key not in baked:
                baked[key] = nn.Parameter(layer.weight_step(layer.weight))
            layer.weight = baked[key]
            scales = layer.weight_step.scale.detach().flatten()
            step = None if isinstance(layer, LearntEmbedding) else layer.input_step
            found.append(
                Scales(
                    layer.weight.detach(),
                    scales,
                    None if step is None else float(step.scale),
                    0 if step is None else int(step.zero_point),
                )
            )
    for layer in layers:
        layer.weight_step = None
        if not isinstance(layer, LearntEmbedding):
            layer.input_step = None
    return found
