"""The ways in which int8_static may be done, which of them to try, and which one to keep. Pure.

What is best is a matter of model and processor (docs/quantization.md), so a few are made and measured; the table of
all that were tried stands in the artifact's recipe.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Pick = Literal["smallest", "fastest", "most_accurate"]


@dataclass(frozen=True)
class Variant:
    """One way of quantizing weights and activations to 8 bits.

    Attributes:
        calibration: where the ranges of activations come from; see `jobs.compress.calibration`.
        symmetric: activations are spread evenly around zero, in signed integers; else over what occurs, in unsigned.
        per_channel: a scale for each output of a layer; else one for all of its weights.
        reduce_range: weights take 7 of the 8 bits, so that kernels that add up in 16 bits cannot saturate.
        excluded: how many of the layers that lose most stay in float32.
    """

    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    symmetric: bool = False
    per_channel: bool = True
    reduce_range: bool = True
    excluded: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Tried:
    """A variant, measured on training samples that neither calibrated it nor are validated with.

    Attributes:
        drop: how much worse than the float model, in the metric's units.
        error: of the outputs, the squared difference to the float model's, as a share of their variance.
        latency_ms: median at batch 1 on this host.
        failed: why there is nothing to measure; empty where there is.
    """

    variant: Variant
    drop: float = float("inf")
    error: float = float("inf")
    latency_ms: float = float("inf")
    bytes: int = 0
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        figures = {"drop": self.drop, "error": self.error, "latency_ms": self.latency_ms, "bytes": self.bytes}
        return {**self.variant.to_json(), **({"failed": self.failed} if self.failed else figures)}


def next_variant(tried: Sequence[Tried], *, full_range: bool, allowed_drop: float, num_layers: int) -> Variant | None:
    """What to try next: one change at a time of the most accurate variant so far; None when all is tried.

    Args:
        tried: so far, in order; empty at the start.
        full_range: whether kernels that add up in 32 bits are there, so that weights may take all 8 bits.
        allowed_drop: how much of the metric may be lost; layers are excluded only where more is.
        num_layers: how many could be.
    """
    if not tried:
        return Variant()
    best = most_accurate(tried)
    changes: list[tuple[str, Any]] = [("calibration", "percentile"), ("calibration", "entropy")]
    changes += [("reduce_range", False)] if full_range else []
    changes += [("per_channel", False), ("symmetric", True)]
    if best.drop > allowed_drop:
        changes += [("excluded", count) for count in (1, 2, 4) if count < num_layers]
    done = {item for each in tried for item in each.variant.to_json().items()}
    change = next((change for change in changes if change not in done), None)
    return None if change is None else replace(best.variant, **dict([change]))


def most_accurate(tried: Sequence[Tried]) -> Tried:
    """The one with the least drop, then the least error of its outputs; ties go to the earlier."""
    return min(tried, key=lambda each: (round(each.drop, 9), each.error))


def choose(tried: Sequence[Tried], *, pick: Pick, tolerance: float, latency_slack: float = 0.05) -> Tried:
    """The variant to keep: by `pick`, among those whose drop is within `tolerance` of the least.

    Latencies within `latency_slack` of the lowest count as equal, sizes within 1 %; then the error of the outputs
    decides. Raises ValueError where none could be made.
    """
    made = [each for each in tried if not each.failed]
    if not made:
        raise ValueError("no variant could be made")
    least = most_accurate(made).drop
    near = [each for each in made if each.drop <= max(least, 0.0) + tolerance]
    if pick == "fastest":
        fastest = min(each.latency_ms for each in near)
        near = [each for each in near if each.latency_ms <= fastest * (1.0 + latency_slack)]
    elif pick == "smallest":
        smallest = min(each.bytes for each in near)
        near = [each for each in near if each.bytes <= smallest * 1.01]
    return min(near, key=lambda each: (each.error, each.latency_ms))
