"""Structured pruning: whole channels and neurons go, so the smaller model is an ordinary, faster one.

What must shrink together (a convolution, its batch normalization, the inputs of the next layer, both arms of a
residual connection) is found by the dependency graph of Torch-Pruning (Fang et al. 2023). Which channels go is
decided here, by group magnitude: the mean squared L2 norm of all the weights that a channel would take along.
"""

import copy
import warnings
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

from jobs.errors import JobFailed, SpecError
from jobs.records import Signature

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class _Group:
    """Layers that shrink together.

    With grouped convolutions or group normalization the channels lie in `num_blocks` equal blocks, and a channel is
    removed from each block alike; `scores` (width / num_blocks,) are then means over the blocks.
    """

    name: str
    layer: Any
    prune_fn: Any
    scores: "torch.Tensor"
    num_blocks: int

    @property
    def width(self) -> int:
        return len(self.scores) * self.num_blocks


def step_ratios(ratio: float, steps: int) -> tuple[float, ...]:
    """The share to remove at each step from what is then left, so that `ratio` of the whole is gone at the end.

    >>> step_ratios(0.5, 2)
    (0.25, 0.3333333333333333)
    """
    return tuple((ratio / steps) / (1.0 - ratio * step / steps) for step in range(steps))


def prune_structured(
    model: "nn.Module",
    signature: Signature,
    *,
    ratio: float,
    round_to: int = 1,
    global_pruning: bool = False,
) -> "nn.Module":
    """A smaller copy of `model`, without its weakest channels and neurons; `model` stays as it is.

    The widths left are functions of the widths, `ratio` and `round_to` (and of the weights, under global pruning);
    the same model gives the same result. Layers whose output is the model's output keep all of it; recurrent and
    attention layers keep their widths, and so does whatever adds up with their outputs: of a transformer, the
    feed-forward layers alone lose neurons.

    Args:
        model: any module (batch, *input_shape) → (batch, *output_shape).
        signature: what goes in and comes out.
        ratio: share of the channels to remove: of each layer, or of all layers together.
        round_to: widths left are multiples of this, the nearest, at least one; a layer that is narrower stays.
        global_pruning: compare channels across layers, by scores relative to their layer's mean; every layer keeps
            at least one.

    Raises:
        SpecError: a layer would lose all its channels, or no layer can be pruned.
        JobFailed: the model cannot be traced, or does not work once it is pruned.
    """
    import torch

    pruned = copy.deepcopy(model)
    # Tracing goes through autograd, in evaluation mode; frozen parameters and modes are put back afterwards.
    modes = {name: module.training for name, module in pruned.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in pruned.named_parameters()}
    pruned.requires_grad_(True).eval()
    device = next((parameter.device for parameter in pruned.parameters()), torch.device("cpu"))
    example = torch.zeros(2, *signature.input_shape, dtype=getattr(torch, signature.input_dtype), device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, groups = _score(pruned, example)
        kept = _widths(groups, ratio, round_to, global_pruning)
        for group, width in zip(groups, kept, strict=True):
            if width < group.width:
                graph.get_pruning_group(group.layer, group.prune_fn, _weakest(group, width)).prune()
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(trainable[name])
        parameter.grad = None
    for name, module in pruned.named_modules():
        module.training = modes[name]
    _check(pruned, example, signature)
    return pruned


def _score(model: "nn.Module", example: "torch.Tensor") -> tuple[Any, list[_Group]]:
    import torch_pruning
    from torch import nn

    from jobs.models.modules import Attention

    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise JobFailed(f"the model {type(model).__name__} cannot be traced for pruning: {error}") from error
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
    kinds = (nn.RNNBase, nn.MultiheadAttention, Attention)
    fixed = {part for layer in model.modules() if isinstance(layer, kinds) for part in layer.modules()}
    names = {module: name for name, module in model.named_modules()}
    groups = []
    for members in graph.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear]):
        if _reaches_output(graph, members) or any(dep.target.module in fixed for dep, _ in members):
            continue
        layer, prune_fn = members[0].dep.target.module, members[0].dep.handler
        num_blocks = max(_num_blocks(dep.target.module) for dep, _ in members)
        scores = importance(members).view(num_blocks, -1).mean(dim=0).cpu()
        groups.append(_Group(names[layer], layer, prune_fn, scores, num_blocks))
    if not groups:
        raise SpecError.at(
            "compress.prune",
            f"the model {type(model).__name__} has no layer that can be pruned: only its outputs are left",
            allowed="a model with a hidden convolution or linear layer",
        )
    return graph, groups


def _reaches_output(graph: Any, members: Any) -> bool:
    return any(graph.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs for dep, _ in members)


def _num_blocks(layer: Any) -> int:
    from torch import nn

    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups < layer.out_channels:
        return layer.groups
    return 1  # also depthwise: each channel on its own


def _widths(groups: list[_Group], ratio: float, round_to: int, global_pruning: bool) -> list[int]:
    """How many channels each group keeps."""
    targets = _global_targets(groups, ratio) if global_pruning else [g.width * (1.0 - ratio) for g in groups]
    kept = []
    for group, target in zip(groups, targets, strict=True):
        # Half a channel is kept: rounding up errs on the side of accuracy.
        if int(target / group.num_blocks + 0.5) < 1:
            raise SpecError.at(
                "compress.prune.ratio",
                f"removing this share would leave nothing of layer {group.name!r} with its {group.width} channels",
                ratio,
                f"at most {1.0 - 0.5 / len(group.scores):.3g}",
            )
        kept.append(_rounded(target, group.width, lcm(round_to, group.num_blocks)))
    return kept


def _rounded(target: float, width: int, multiple: int) -> int:
    if width < multiple:
        return width
    nearest = int(target / multiple + 0.5) * multiple
    return min(max(nearest, multiple), width - width % multiple)


def _global_targets(groups: list[_Group], ratio: float) -> list[float]:
    """Widths left when the weakest channels go, wherever they are, but never a layer's last one."""
    import torch

    owners = torch.cat([torch.full(group.scores.shape, index) for index, group in enumerate(groups)])
    ranked = owners[torch.argsort(torch.cat([group.scores for group in groups]), stable=True)].tolist()
    left = [group.width for group in groups]
    total, smallest = sum(left), sum(group.num_blocks for group in groups)
    to_keep = round(total * (1.0 - ratio))
    if to_keep < smallest:
        raise SpecError.at(
            "compress.prune.ratio",
            f"removing this share of {total} channels would leave nothing of some of the {len(groups)} layers",
            ratio,
            f"at most {1.0 - smallest / total:.3g}",
        )
    for owner in ranked:
        block = groups[owner].num_blocks
        if left[owner] > block and sum(left) - block >= to_keep:
            left[owner] -= block
    return [float(width) for width in left]


def _weakest(group: _Group, kept: int) -> list[int]:
    """Indices to remove; equal scores go in order of their index."""
    import torch

    size = len(group.scores)
    weakest = torch.argsort(group.scores, stable=True)[: size - kept // group.num_blocks].tolist()
    return sorted(index + block * size for block in range(group.num_blocks) for index in weakest)


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
