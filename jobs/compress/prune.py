"""Structured pruning: whole channels, neurons, heads, states and layers go, so the smaller model is an ordinary one.

What must shrink together is found by `jobs.compress.groups`, how important each unit is by `jobs.compress.importance`.
Here it is decided which units go (`choose_cut`), and done (`apply_cut`): the decision is plain names and indices, so
that all workers can agree on one.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from jobs.compress.widths import rounded, weakest, widths_left
from jobs.errors import JobFailed, SpecError
from jobs.models.prunable import PARTS, matches
from jobs.records import Signature
from jobs.spec.compress import Part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from jobs.compress.groups import Group
    from jobs.compress.importance import Importance, Samples

UNASKED: tuple[Part, ...] = tuple(part for part in PARTS if part != "layers")
"""What goes where `what` does not say: whole layers are for whoever asks for them."""
_SENSITIVE = 3.0
"""A layer whose pruning alone costs so many times what the median layer's does is protected."""
_LEAST_RISE = 0.01
"""… unless the loss rises by less than this share."""


@dataclass(frozen=True)
class Cut:
    """What goes: units by the names of their groups, and whole blocks."""

    units: dict[str, list[int]]
    blocks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"units": self.units, "blocks": list(self.blocks)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Cut":
        return cls(document["units"], tuple(document["blocks"]))


def prune_structured(
    model: "nn.Module",
    signature: Signature,
    *,
    ratio: float,
    round_to: int = 1,
    global_pruning: bool = False,
    importance: "Importance" = "magnitude",
    what: Sequence[Part] | None = None,
    keep: Sequence[str] = (),
    samples: "Samples | None" = None,
) -> "nn.Module":
    """A smaller copy of `model`, without its least important units; `model` stays as it is.

    The widths left are functions of the widths, `ratio` and `round_to` (and of the importance, under global pruning);
    the same model gives the same result. Layers whose output is the model's output keep all of it, and so does what
    adds up along a transformer's layers.

    Args:
        model: any module (batch, *input_shape) → (batch, *output_shape).
        signature: what goes in and comes out.
        ratio: share of the units to remove: of each layer, or of all layers together; of whole layers likewise.
        round_to: widths left, in features, are multiples of this, the nearest, at least one; a narrower layer stays.
        global_pruning: compare units across layers, by importance relative to their layer's mean; every layer keeps
            at least one.
        what: parts that may go; default: all but whole layers.
        keep: names of layers, or of what they are in, that lose nothing.
        samples: training samples, for every importance but the magnitude, and for whole layers.

    Raises:
        SpecError: a layer would lose all its channels, or nothing can be pruned.
        JobFailed: the model cannot be traced, or does not work once it is pruned.
    """
    cut = choose_cut(
        model,
        signature,
        ratio=ratio,
        round_to=round_to,
        global_pruning=global_pruning,
        importance=importance,
        what=what,
        keep=keep,
        samples=samples,
    )
    return apply_cut(model, signature, cut)


def choose_cut(
    model: "nn.Module",
    signature: Signature,
    *,
    ratio: float,
    round_to: int = 1,
    global_pruning: bool = False,
    importance: "Importance" = "magnitude",
    what: Sequence[Part] | None = None,
    keep: Sequence[str] = (),
    samples: "Samples | None" = None,
) -> Cut:
    """Which units `prune_structured` removes, with the same arguments and errors. `model` stays as it is."""
    from jobs.compress.importance import score

    with _studied(model) as copied:
        groups = _groups(copied, signature, what, keep)
        scores = score(copied, groups, importance, samples)
        blocks: tuple[str, ...] = ()
        if "layers" in (what or ()):
            assert samples is not None
            blocks = _least_needed(copied, ratio, keep, samples)
            inner = [not matches(group.name, blocks) for group in groups]
            groups = [group for group, stays in zip(groups, inner, strict=True) if stays]
            scores = [found for found, stays in zip(scores, inner, strict=True) if stays]
        kept = widths_left(groups, scores, ratio, round_to, global_pruning)
        units = {
            group.name: weakest(group, found, width)
            for group, found, width in zip(groups, scores, kept, strict=True)
            if width < group.width
        }
        if not units and not blocks and groups and all(group.width * group.size < round_to for group in groups):
            widest = max(group.width * group.size for group in groups)
            raise SpecError.at(
                "compress.prune.round_to",
                "no layer is so wide",
                round_to,
                f"at most {widest}, the widest layer's width",
            )
    return Cut(units, blocks)


def apply_cut(model: "nn.Module", signature: Signature, cut: Cut) -> "nn.Module":
    """A copy of `model` without what the cut names. Raises JobFailed where it does not work any more."""
    from jobs.compress.groups import find_groups
    from jobs.models.structure import drop_blocks

    pruned = copy.deepcopy(model)
    modes = {name: module.training for name, module in pruned.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in pruned.named_parameters()}
    # Tracing goes through autograd, in evaluation mode; frozen parameters and modes are put back afterwards.
    pruned.requires_grad_(True).eval()
    drop_blocks(pruned, cut.blocks)
    example = _example(pruned, signature)
    for group in find_groups(pruned, example):
        if units := cut.units.get(group.name):
            group.remove(units)
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(trainable[name])
        parameter.grad = None
    for name, module in pruned.named_modules():
        module.training = modes[name]
    _check(pruned, example, signature)
    return pruned


def sensitive_layers(
    model: "nn.Module",
    signature: Signature,
    *,
    ratio: float,
    importance: "Importance",
    what: Sequence[Part] | None,
    keep: Sequence[str],
    samples: "Samples",
) -> tuple[str, ...]:
    """The layers that should be left whole: pruned by `ratio`, alone and without recovery, they cost far more than
    the others do. Measured on training samples; takes a forward pass of them for each layer.
    """
    from jobs.compress.importance import losses_without, score

    with _studied(model) as copied:
        groups = _groups(copied, signature, what, keep)
        scores = score(copied, groups, importance, samples)
        gone = [
            weakest(group, found, rounded(group.width * (1.0 - ratio), group.width, group.blocks))
            for group, found in zip(groups, scores, strict=True)
        ]
        whole, losses = losses_without(copied, groups, gone, samples)
    rises = [loss - whole for loss in losses]
    bar = max(_SENSITIVE * median(rises), _LEAST_RISE * abs(whole)) if rises else math.inf
    return tuple(group.name for group, rise in zip(groups, rises, strict=True) if rise > bar)


@contextmanager
def _studied(model: "nn.Module") -> Iterator["nn.Module"]:
    """A copy to look at: in evaluation mode, with gradients for all of it."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(True).eval()
    yield copied


def _example(model: "nn.Module", signature: Signature) -> "torch.Tensor":
    import torch

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.zeros(2, *signature.input_shape, dtype=getattr(torch, signature.input_dtype), device=device)


def _groups(
    model: "nn.Module", signature: Signature, what: Sequence[Part] | None, keep: Sequence[str]
) -> "list[Group]":
    from jobs.compress.groups import find_groups

    found = find_groups(model, _example(model, signature))
    asked = UNASKED if what is None else what
    chosen = [group for group in found if group.part in asked]
    if not chosen and "layers" not in asked:
        raise SpecError.at(
            "compress.prune",
            f"the model {type(model).__name__} has no layer that can be pruned"
            + (f" of the kinds {', '.join(asked)}" if what else ": only its outputs are left"),
            allowed="a model with a hidden layer" + (f"; it has {_kinds(found)}" if found else ""),
        )
    left = [group for group in chosen if not any(matches(member, keep) for member in group.members)]
    if chosen and not left:
        raise SpecError.at("compress.prune.ignore", "with these left whole, no layer remains to be pruned", list(keep))
    return left


def _kinds(groups: "list[Group]") -> str:
    return ", ".join(dict.fromkeys(group.part for group in groups))


def _least_needed(model: "nn.Module", ratio: float, keep: Sequence[str], samples: "Samples") -> tuple[str, ...]:
    """The layers of a transformer that the loss rises least without: one after the other, and one stays at least."""
    from torch import nn

    from jobs.models.modules import ResidualOverSteps

    blocks = [(name, list(block.children())) for name, block in model.named_children()]
    candidates = [
        name for name, layers in blocks if layers and all(isinstance(layer, ResidualOverSteps) for layer in layers)
    ]
    if not isinstance(model, nn.Sequential) or not candidates:
        raise SpecError.at("compress.prune.what", "the model has no layers that it can do without", "layers")
    left = max(1, int(len(candidates) * (1.0 - ratio) + 0.5))
    free = [name for name in candidates if not any(matches(each, [name]) or matches(name, [each]) for each in keep)]
    gone: list[str] = []
    while len(candidates) - len(gone) > left and len(gone) < len(free):
        losses = {}
        for name in free:
            if name not in gone:
                staying = [(each, block) for each, block in model.named_children() if each not in (*gone, name)]
                losses[name] = samples.mean_loss(nn.Sequential(OrderedDict(staying)))
        gone.append(min(losses, key=lambda name: losses[name]))
    return tuple(gone)


def _check(model: "nn.Module", example: "torch.Tensor", signature: Signature) -> None:
    import torch

    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            shape = tuple(model(example).shape)
    except (RuntimeError, ValueError) as error:
        raise JobFailed(f"the model {type(model).__name__} does not run once it is pruned: {error}") from error
    for module, training in was_training.items():
        module.training = training
    if shape[1:] != signature.output_shape:
        raise JobFailed(
            f"the model {type(model).__name__} gives {shape[1:]} once it is pruned, not {signature.output_shape}"
        )
