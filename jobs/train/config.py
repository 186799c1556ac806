"""The one place where a plan becomes DeepSpeed's configuration: a pure function, tested without DeepSpeed."""

from typing import Any

from jobs.layout import BatchShare


def deepspeed_config(
    share: BatchShare, *, zero_stage: int, precision: str, gradient_clip: float | None
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
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if zero_stage > 0:
        config["zero_optimization"] = {
            "stage": zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 5_000_000,
        }
    if zero_stage == 3:
        config["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 10_000,
            "stage3_prefetch_bucket_size": 5_000_000,
        }
    return config
