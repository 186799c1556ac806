"""The one place where a plan becomes DeepSpeed's configuration: a pure function, tested without DeepSpeed."""

from typing import Any

from jobs.layout import BatchShare, ParallelLayout
from jobs.spec import JobSpec
from jobs.spec.train import Layout

BUCKET_VALUES = 5_000_000
"""Values that ZeRO reduces, or gathers, at once: what its buffers hold."""
PERSISTENT_VALUES = 10_000
"""Smaller parameters stay whole under ZeRO 3."""


def deepspeed_config(
    share: BatchShare,
    layout: ParallelLayout,
    *,
    precision: str,
    gradient_clip: float | None,
    nvme_path: str | None = None,
) -> dict[str, Any]:
    """DeepSpeed's JSON for a layout.

    The optimizer is built by us and handed over, and the rate is set before each step, so neither stands in here.
    See https://www.deepspeed.ai/docs/config-json/.
    """
    config: dict[str, Any] = {
        "train_batch_size": share.global_batch,
        "train_micro_batch_size_per_gpu": share.micro,
        "gradient_accumulation_steps": share.accumulation,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Left out, DeepSpeed (0.19) would clip at a norm of 1.
        "gradient_clipping": gradient_clip or 0.0,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    if layout.zero_stage > 0:
        config["zero_optimization"] = _zero(layout, nvme_path)
    if layout.pipeline > 1:
        # Activations travel whole between stages: tensor peers would have to put them together again.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    return config


def planned_config(spec: JobSpec, share: BatchShare, layout: ParallelLayout) -> dict[str, Any]:
    """DeepSpeed's JSON for the training of a job in a layout that was chosen for it."""
    return deepspeed_config(
        share,
        layout,
        precision=spec.train.precision,
        gradient_clip=spec.train.gradient_clip,
        nvme_path=spec.layout.nvme_path if isinstance(spec.layout, Layout) else None,
    )


def _zero(layout: ParallelLayout, nvme_path: str | None) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": layout.zero_stage,
        "overlap_comm": False,
        # At stage 3 it would keep a whole bucket between steps, to save a copy.
        "contiguous_gradients": layout.zero_stage < 3,
        "reduce_bucket_size": BUCKET_VALUES,
        "allgather_bucket_size": BUCKET_VALUES,
    }
    if layout.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": PERSISTENT_VALUES,
            "stage3_prefetch_bucket_size": BUCKET_VALUES,
            # Left out, up to 1e9 gathered parameters stay whole from the forward pass to the backward pass.
            "stage3_max_live_parameters": BUCKET_VALUES,
            "stage3_max_reuse_distance": BUCKET_VALUES,
        }
    if layout.offload != "none":
        place: dict[str, Any] = {"device": layout.offload}
        if layout.offload == "nvme":
            place["nvme_path"] = nvme_path
        zero["offload_optimizer"] = place
        if layout.zero_stage == 3:
            zero["offload_param"] = dict(place)
    return zero
