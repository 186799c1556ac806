"""How much memory a worker needs, as integers: what a layout is chosen by.

ZeRO (Rajbhandari, Rasley, Ruwase & He 2020, section 3) divides over the data-parallel workers: stage 1 the optimizer
states (and the fp32 copy under mixed precision), stage 2 the gradients too, stage 3 the parameters too.
"""

from jobs.layout import BatchShare, ParallelLayout
from jobs.records import MemoryEstimate, ModelSummary

_STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""fp32 tensors of a parameter's size that the optimizer keeps."""


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
