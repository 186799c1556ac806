"""How many units pruning leaves of each group, and which."""

from math import gcd, lcm

import torch

from jobs.compress.groups import Group
from jobs.errors import SpecError
from jobs.spec.compress import Part

_FEW: tuple[Part, ...] = ("heads", "layers")
"""Parts of which there are few: the last one stays, whatever the ratio."""


def step_ratios(ratio: float, steps: int) -> tuple[float, ...]:
    """The share to remove at each step from what is then left, so that `ratio` of the whole is gone at the end.

    >>> step_ratios(0.5, 2)
    (0.25, 0.3333333333333333)
    """
    return tuple((ratio / steps) / (1.0 - ratio * step / steps) for step in range(steps))


def widths_left(
    groups: list[Group], scores: list[torch.Tensor], ratio: float, round_to: int, global_pruning: bool
) -> list[int]:
    """How many units each group keeps."""
    if not groups:
        return []
    targets = _global_targets(groups, scores, ratio) if global_pruning else [g.width * (1.0 - ratio) for g in groups]
    kept = []
    for group, target in zip(groups, targets, strict=True):
        if group.part in _FEW:
            target = max(target, 1.0)
        # Half a channel is kept: rounding up errs on the side of accuracy.
        if int(target / group.blocks + 0.5) < 1:
            raise SpecError.at(
                "compress.prune.ratio",
                f"removing this share would leave nothing of layer {group.name!r} with its {group.width} {group.part}",
                ratio,
                f"at most {1.0 - 0.5 * group.blocks / group.width:.3g}",
            )
        multiple = round_to // gcd(round_to, group.size)
        kept.append(rounded(target, group.width, lcm(multiple, group.blocks)))
    return kept


def rounded(target: float, width: int, multiple: int) -> int:
    if width < multiple:
        return width
    nearest = int(target / multiple + 0.5) * multiple
    return min(max(nearest, multiple), width - width % multiple)


def _global_targets(groups: list[Group], scores: list[torch.Tensor], ratio: float) -> list[float]:
    """Widths left when the weakest units go, wherever they are, but never a layer's last one."""
    owners = torch.cat([torch.full(found.shape, index) for index, found in enumerate(scores)])
    ranked = owners[torch.argsort(torch.cat(scores), stable=True)].tolist()
    left = [group.width for group in groups]
    total, smallest = sum(left), sum(group.blocks for group in groups)
    to_keep = round(total * (1.0 - ratio))
    if to_keep < smallest:
        raise SpecError.at(
            "compress.prune.ratio",
            f"removing this share of {total} channels would leave nothing of some of the {len(groups)} layers",
            ratio,
            f"at most {1.0 - smallest / total:.3g}",
        )
    for owner in ranked:
        block = groups[owner].blocks
        if left[owner] > block and sum(left) - block >= to_keep:
            left[owner] -= block
    return [float(width) for width in left]


def weakest(group: Group, scores: torch.Tensor, kept: int) -> list[int]:
    """Indices to remove; equal scores go in order of their index."""
    size = len(scores)
    weakest = torch.argsort(scores, stable=True)[: size - kept // group.blocks].tolist()
    return sorted(index + block * size for block in range(group.blocks) for index in weakest)
