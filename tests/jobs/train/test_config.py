"""DeepSpeed's configuration, word for word."""

import json
from typing import Any

import pytest

from jobs.layout import BatchShare, ParallelLayout, share_batch
from jobs.train.config import deepspeed_config

COMMON: dict[str, Any] = {
    "steps_per_print": 2**31,
    "wall_clock_breakdown": False,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
BUCKETS: dict[str, Any] = {
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_bucket_size": 5_000_000,
    "allgather_bucket_size": 5_000_000,
}
STAGE_3 = {
    "contiguous_gradients": False,
    "stage3_param_persistence_threshold": 10_000,
    "stage3_prefetch_bucket_size": 5_000_000,
    "stage3_max_live_parameters": 5_000_000,
    "stage3_max_reuse_distance": 5_000_000,
}


@pytest.mark.parametrize(
    ("share", "layout", "options", "expected"),
    [
        (
            share_batch(64, 1, None),
            ParallelLayout(zero_stage=0),
            {"precision": "fp32", "gradient_clip": None},
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 64,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,
            },
        ),
        (
            share_batch(96, 2, 12),
            ParallelLayout(zero_stage=1),
            {"precision": "bf16", "gradient_clip": 0.5},
            {
                "train_batch_size": 96,
                "train_micro_batch_size_per_gpu": 12,
                "gradient_accumulation_steps": 4,
                "gradient_clipping": 0.5,
                "bf16": {"enabled": True},
                "zero_optimization": {"stage": 1, **BUCKETS},
            },
        ),
        (
            share_batch(8, 4, 1),
            ParallelLayout(zero_stage=2),
            {"precision": "fp32", "gradient_clip": 1.0},
            {
                "train_batch_size": 8,
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 2,
                "gradient_clipping": 1.0,
                "zero_optimization": {"stage": 2, **BUCKETS},
            },
        ),
        (
            share_batch(8, 4, None),
            ParallelLayout(zero_stage=3),
            {"precision": "fp32", "gradient_clip": None},
            {
                "train_batch_size": 8,
                "train_micro_batch_size_per_gpu": 2,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,
                "zero_optimization": {
                    "stage": 3,
                    **BUCKETS,
                    **STAGE_3,
                },
            },
        ),
        (
            share_batch(64, 2, 8),
            ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=1),
            {"precision": "fp32", "gradient_clip": None},
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 4,
                "gradient_clipping": 0.0,
                "zero_optimization": {"stage": 1, **BUCKETS},
                "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            },
        ),
        (
            share_batch(8, 1, None),
            ParallelLayout(zero_stage=2, offload="cpu"),
            {"precision": "fp16", "gradient_clip": None},
            {
                "train_batch_size": 8,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,
                "fp16": {"enabled": True},
                "zero_optimization": {"stage": 2, **BUCKETS, "offload_optimizer": {"device": "cpu"}},
            },
        ),
        (
            share_batch(8, 1, None),
            ParallelLayout(zero_stage=3, offload="nvme"),
            {"precision": "fp32", "gradient_clip": None, "nvme_path": "/scratch"},
            {
                "train_batch_size": 8,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,
                "zero_optimization": {
                    "stage": 3,
                    **BUCKETS,
                    **STAGE_3,
                    "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch"},
                    "offload_param": {"device": "nvme", "nvme_path": "/scratch"},
                },
            },
        ),
    ],
    ids=["one worker", "ZeRO 1, bf16", "ZeRO 2", "ZeRO 3", "2×2×2", "fp16, offload to memory", "offload to a disk"],
)
def test_golden(share: BatchShare, layout: ParallelLayout, options: dict[str, Any], expected: dict[str, Any]) -> None:
    config = deepspeed_config(share, layout, **options)
    assert config == COMMON | expected
    assert json.loads(json.dumps(config)) == config


def test_configs_share_nothing() -> None:
    first = deepspeed_config(
        share_batch(8, 1, None), ParallelLayout(zero_stage=2), precision="fp32", gradient_clip=None
    )
    first["zero_optimization"]["stage"] = 9
    second = deepspeed_config(
        share_batch(8, 1, None), ParallelLayout(zero_stage=2), precision="fp32", gradient_clip=None
    )
    assert second["zero_optimization"]["stage"] == 2
