"""How important each unit of a group is. Whatever looks at data looks at training samples.

magnitude     the squared weights that go with the unit, averaged over the layers that lose them (Li et al. 2017
              take the norm of a filter; the layers that read it, and batch normalization, count here too)
taylor        the sum over batches of |weight · gradient|, to first order what the loss would change by without
              them (Molchanov et al. 2019)
activation    the mean magnitude of what the unit gives to the layers that read it
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from jobs.compress.groups import Group, Reader
from jobs.models.modules import SequenceInput, TokenInput, present

Importance = Literal["magnitude", "taylor", "activation"]


@dataclass(frozen=True)
class Samples:
    """Training samples, and the loss that a model is trained by.

    Attributes:
        batches: encoded samples and their targets.
        loss: (outputs, targets) → the sum over samples, or tokens.
        weight: what the sum over all of them is divided by.
    """

    batches: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    weight: float

    def mean_loss(self, model: nn.Module) -> float:
        """The loss of a model, in the mode that it is in."""
        with torch.no_grad():
            return sum(self.loss(model(x), y).item() for x, y in self.batches) / self.weight


def score(model: nn.Module, groups: list[Group], importance: Importance, samples: Samples | None) -> list[torch.Tensor]:
    """For each group the importance of its units, (width / blocks,), relative to their mean.

    The model is in evaluation mode, and all of it requires gradients; those it has are lost.
    `magnitude` alone does without samples.
    """
    if importance == "magnitude":
        found = [_of_weights(group, lambda parameter: parameter.detach().square()) for group in groups]
    else:
        assert samples is not None
        found = _taylor(model, groups, samples) if importance == "taylor" else _activation(model, groups, samples)
    return [scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny) for scores in found]


def _of_weights(group: Group, saliency: Callable[[nn.Parameter], torch.Tensor]) -> torch.Tensor:
    """Sums what each weight weighs over the places of its unit."""

    def values() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for each in group.slices:
            weights = saliency(each.parameter)
            others = [dim for dim in range(weights.dim()) if dim != each.dim]
            along = weights.sum(dim=others) if others else weights
            yield along[each.places.to(along.device)], each.units

    return group.reduce(values(), len(group.slices))


def _taylor(model: nn.Module, groups: list[Group], samples: Samples) -> list[torch.Tensor]:
    parameters = dict.fromkeys(each.parameter for group in groups for each in group.slices)
    totals = {parameter: torch.zeros_like(parameter) for parameter in parameters}
    for x, y in samples.batches:
        model.zero_grad(set_to_none=True)
        (samples.loss(model(x), y) / samples.weight).backward()
        for parameter, total in totals.items():
            if parameter.grad is not None:
                total += (parameter.detach() * parameter.grad).abs()
    model.zero_grad(set_to_none=True)
    return [_of_weights(group, lambda parameter: totals[parameter]) for group in groups]


class _Observer:
    """Adds up the magnitude of what some layers take, feature by feature; steps that are none do not count."""

    def __init__(self) -> None:
        self.real: torch.Tensor | None = None
        self.total: dict[Reader, torch.Tensor] = {}
        self.count: dict[Reader, float] = {}

    @contextmanager
    def watching(self, model: nn.Module, readers: list[Reader]) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in model.modules():
                if isinstance(layer, TokenInput | SequenceInput):
                    stack.callback(layer.register_forward_hook(self._lengths).remove)
            for reader in readers:
                hook = reader.layer.register_forward_pre_hook(lambda layer, args, r=reader: self._look(r, args[0]))
                stack.callback(hook.remove)
            yield

    def _lengths(self, layer: nn.Module, args: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, lengths = output
        self.real = present(lengths, x.shape[1])

    def _look(self, reader: Reader, x: torch.Tensor) -> None:
        features = x.detach().abs().movedim(reader.dim, -1)
        if self.real is not None and features.shape[:-1] == self.real.shape:
            features = features[self.real]
        features = features.flatten(0, -2)
        self.total[reader] = self.total.get(reader, 0.0) + features.sum(dim=0)
        self.count[reader] = self.count.get(reader, 0.0) + len(features)


def _activation(model: nn.Module, groups: list[Group], samples: Samples) -> list[torch.Tensor]:
    observer = _Observer()
    readers = [reader for group in groups for reader in group.readers]
    with observer.watching(model, readers), torch.no_grad():
        for x, _ in samples.batches:
            model(x)
    found = []
    for group in groups:
        seen = [reader for reader in group.readers if reader in observer.total]
        means = (
            ((observer.total[r] / observer.count[r])[r.places.to(observer.total[r].device)], r.units) for r in seen
        )
        found.append(group.reduce(means, len(seen)))
    return found


def losses_without(
    model: nn.Module, groups: list[Group], weakest: list[list[int]], samples: Samples
) -> tuple[float, list[float]]:
    """The mean loss of the model, and its losses with some units of one group after the other set to zero."""
    whole = samples.mean_loss(model)
    found = []
    with torch.no_grad():
        for group, units in zip(groups, weakest, strict=True):
            kept = [(each.parameter, each.parameter.detach().clone()) for each in group.slices]
            gone = torch.tensor(units, dtype=torch.int64)
            for each in group.slices:
                places = each.places[torch.isin(each.units, gone)].to(each.parameter.device)
                each.parameter.index_fill_(each.dim, places, 0.0)
            found.append(samples.mean_loss(model) if units else whole)
            for parameter, values in kept:
                parameter.copy_(values)
    return whole, found
