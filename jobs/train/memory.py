"""How much memory a worker needs, as integers: what a layout is chosen by.

ZeRO (Rajbhandari, Rasley, Ruwase & He 2020, section 3) divides over the data-parallel workers: stage 1 the optimizer
states (and the fp32 copy under mixed precision), stage 2 the gradients too, stage 3 the parameters too.
"""

from jobs.layout import BatchShare, ParallelLayout
from jobs.records import MemoryEstimate, ModelSummary

_STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""fp32 tensors of a parameter's size that the optimizer keeps."""


def communication_bytes(model: ModelSummary, layout: ParallelLayout, *, precision: str) -> int:
    """Bytes that a worker sends in a step, with ring collectives (Rajbhandari et al. 2020, section 7).

    Gradients are all-reduced at stages 0 to 2 (twice their size: reduce-scatter, then all-gather); stage 3 gathers the
    parameters once more, for the backward pass.
    """
    width = 4 if precision == "fp32" else 2
    volumes = 3 if layout.zero_stage == 3 else 2
    return volumes * model.params * width * (layout.data - 1) // layout.data


def estimate(
    model: ModelSummary,
    layout: ParallelLayout,
    share: BatchShare,
    *,
    precision: str,
    optimizer: str,
    sample_values: int,
) -> MemoryEstimate:
    """Bytes at the peak of a training step; `sample_values` is the size of one encoded sample."""
    width = 4 if precision == "fp32" else 2
    states = 4 * _STATES[optimizer] + (4 if precision != "fp32" else 0)

    def held(bytes_each: int, from_stage: int) -> int:
        whole = model.params * bytes_each
        return -(-whole // layout.data) if layout.zero_stage >= from_stage else whole

    return MemoryEstimate(
        parameters=held(width, 3),
        gradients=held(width, 2),
        optimizer_states=held(states, 1),
        activations=model.activations * share.micro * width,
        batch=sample_values * share.micro * 4,
    )
