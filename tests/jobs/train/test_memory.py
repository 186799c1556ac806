"""Memory estimates against the formulas of the ZeRO paper (section 3), on numbers by hand."""

from typing import Any

import pytest

from jobs.layout import ParallelLayout, share_batch
from jobs.records import MemoryEstimate, ModelSummary
from jobs.train.memory import communication_bytes, estimate

MODEL = ModelSummary(blocks=(), params=1000, macs=0, activations=50, layout_invariant=True)


def of(workers: int, stage: int, **changes: Any) -> MemoryEstimate:
    options: dict[str, Any] = {"precision": "fp32", "optimizer": "adamw", "sample_values": 64, **changes}
    return estimate(MODEL, ParallelLayout(data=workers, zero_stage=stage), share_batch(32, workers, None), **options)


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "states"),
    [(0, 4000, 4000, 8000), (1, 4000, 4000, 2000), (2, 4000, 1000, 2000), (3, 1000, 1000, 2000)],
)
def test_four_workers_divide_what_their_stage_divides(stage: int, parameters: int, gradients: int, states: int) -> None:
    found = of(4, stage)
    assert (found.parameters, found.gradients, found.optimizer_states) == (parameters, gradients, states)
    assert found.activations == 50 * 8 * 4  # values a sample × micro-batch × bytes
    assert found.batch == 64 * 8 * 4
    assert found.total == parameters + gradients + states + 1600 + 2048


@pytest.mark.parametrize(
    ("stage", "total"),
    [
        # The paper's 16 bytes a parameter: 2 + 2 + K with K = 12, divided from 4Ψ + KΨ/N to (4 + K)Ψ/N.
        (0, 16_000),
        (1, 4_000 + 12_000 // 4),
        (2, 2_000 + 14_000 // 4),
        (3, 16_000 // 4),
    ],
)
def test_mixed_precision_with_adam_is_the_papers_figure_1(stage: int, total: int) -> None:
    found = of(4, stage, precision="bf16")
    assert found.parameters + found.gradients + found.optimizer_states == total
    assert found.activations == 50 * 8 * 2


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("sgd", 4), ("adam", 8), ("adamw", 8)])
def test_states_of_each_optimizer(optimizer: str, bytes_each: int) -> None:
    assert of(1, 0, optimizer=optimizer).optimizer_states == 1000 * bytes_each


def test_what_does_not_divide_is_rounded_up() -> None:
    assert of(32, 3).parameters == 125
    share = share_batch(6, 3, None)
    found = estimate(
        MODEL,
        ParallelLayout(data=3, zero_stage=3),
        share,
        precision="fp32",
        optimizer="adam",
        sample_values=1,
    )
    assert found.parameters == 1334


def test_micro_batches_hold_less() -> None:
    layout = ParallelLayout(data=2)
    options: dict[str, Any] = {"precision": "fp32", "optimizer": "sgd", "sample_values": 10}
    whole = estimate(MODEL, layout, share_batch(64, 2, None), **options)
    part = estimate(MODEL, layout, share_batch(64, 2, 8), **options)
    assert (whole.activations, part.activations) == (50 * 32 * 4, 50 * 8 * 4)
    assert (whole.batch, part.batch) == (10 * 32 * 4, 10 * 8 * 4)
    assert whole.parameters == part.parameters


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_papers_example_of_7_5_billion_parameters_on_64_devices(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: model states of mixed-precision Adam, a device."""
    model = MODEL.model_copy(update={"params": 7_500_000_000})
    layout, share = ParallelLayout(data=64, zero_stage=stage), share_batch(64, 64, None)
    found = estimate(model, layout, share, precision="bf16", optimizer="adamw", sample_values=1)
    states = found.parameters + found.gradients + found.optimizer_states
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize(("stage", "volumes"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_stage_3_sends_half_as_much_again(stage: int, volumes: int) -> None:
    """Section 7: 2Ψ for all-reduced gradients, 3Ψ where parameters are gathered too; a ring sends (N-1)/N of it."""
    sent = communication_bytes(MODEL, ParallelLayout(data=4, zero_stage=stage), precision="fp32")
    assert sent == volumes * 4000 * 3 // 4
    assert communication_bytes(MODEL, ParallelLayout(data=1, zero_stage=stage), precision="fp32") == 0
