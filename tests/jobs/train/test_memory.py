"""Memory and communication against the formulas of their papers, on numbers by hand."""

from typing import Any

import pytest

from jobs.layout import ParallelLayout, share_batch
from jobs.records import BlockSummary, MemoryEstimate, ModelSummary, Signature
from jobs.train.config import BUCKET_VALUES
from jobs.train.memory import communication_bytes, estimate, sample_bytes

MODEL = ModelSummary(blocks=(), params=1000, macs=0, activations=50, layout_invariant=True)
BUCKET_BYTES = 4 * BUCKET_VALUES
LARGE = 100_000_000
"""Parameters beside which a bucket is small."""
LARGE_MODEL = MODEL.model_copy(
    update={"params": LARGE, "blocks": tuple(BlockSummary(name=str(n), params=LARGE // 50) for n in range(50))}
)

# Three blocks; of the first and the last, tensor parallelism divides all; the last uses the first one's table again.
BLOCKS = ModelSummary(
    blocks=(
        BlockSummary(name="table", params=600, split_params=600, macs=10, activations=30, output_shape=(8,)),
        BlockSummary(
            name="layer",
            params=500,
            split_params=400,
            macs=60,
            split_macs=40,
            activations=100,
            split_activations=80,
            tensor_values=8,
            output_shape=(4, 2),
        ),
        BlockSummary(name="last", params=100, macs=70, activations=20, output_shape=(3,)),
    ),
    params=1200,
    macs=140,
    activations=150,
    layout_invariant=True,
    tensor_width=4,
    tied_params=600,
)


def of(layout: ParallelLayout, model: ModelSummary = MODEL, *, batch: int = 32, **changes: Any) -> MemoryEstimate:
    options: dict[str, Any] = {"precision": "fp32", "optimizer": "adamw", "sample_bytes": 256, **changes}
    share = share_batch(batch, layout.data, options.pop("micro_batch", None), pipeline=layout.pipeline)
    return estimate(model, layout, share, **options)


def zero(stage: int, data: int = 4, **changes: Any) -> MemoryEstimate:
    return of(ParallelLayout(data=data, zero_stage=stage), **changes)


class TestZero:
    @pytest.mark.parametrize(
        ("stage", "parameters", "gradients", "states"),
        # ZeRO 1 and 2 update a copy of their partition; at stage 3 it is the parameters' own memory.
        [(0, 4000, 4000, 8000), (1, 4000, 4000, 3000), (2, 4000, 1000, 3000), (3, 1000, 1000, 2000)],
    )
    def test_four_workers_divide_what_their_stage_divides(
        self, stage: int, parameters: int, gradients: int, states: int
    ) -> None:
        found = zero(stage)
        assert (found.parameters, found.gradients, found.optimizer_states) == (parameters, gradients, states)
        assert found.activations == 50 * 8 * 4  # values a sample × micro-batch × bytes
        assert found.batch == 256 * 8
        assert found.total == parameters + gradients + states + 1600 + 2048 + found.buffers
        assert found.on_device == found.total

    @pytest.mark.parametrize(
        ("stage", "total"),
        [
            # The paper's 16 bytes a parameter: 2 + 2 + K with K = 12, divided from 4Ψ + KΨ/N to (4 + K)Ψ/N.
            (1, 4_000 + 12_000 // 4),
            (2, 2_000 + 14_000 // 4),
            (3, 16_000 // 4),
        ],
    )
    def test_mixed_precision_with_adam_is_the_papers_figure_1(self, stage: int, total: int) -> None:
        found = zero(stage, precision="bf16")
        assert found.parameters + found.gradients + found.optimizer_states == total
        assert found.activations == 50 * 8 * 2

    @pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
    def test_the_papers_example_of_7_5_billion_parameters_on_64_devices(self, stage: int, gigabytes: float) -> None:
        """Rajbhandari et al. 2020, figure 1: model states of mixed-precision Adam, a device."""
        model = MODEL.model_copy(update={"params": 7_500_000_000})
        found = zero(stage, 64, model=model, batch=64, precision="bf16")
        states = found.parameters + found.gradients + found.optimizer_states
        assert states / 1e9 == pytest.approx(gigabytes, rel=0.03)

    @pytest.mark.parametrize(("optimizer", "bytes_each"), [("sgd", 4), ("adam", 8), ("adamw", 8)])
    def test_states_of_each_optimizer(self, optimizer: str, bytes_each: int) -> None:
        assert zero(0, 1, optimizer=optimizer).optimizer_states == 1000 * bytes_each

    def test_what_does_not_divide_is_rounded_up(self) -> None:
        assert zero(3, 32).parameters == 4 * 32
        assert zero(3, 3, batch=6).parameters == 4 * 334

    def test_micro_batches_hold_less(self) -> None:
        whole, part = zero(0, 2, batch=64), zero(0, 2, batch=64, micro_batch=8)
        assert (whole.activations, part.activations) == (50 * 32 * 4, 50 * 8 * 4)
        assert (whole.batch, part.batch) == (256 * 32, 256 * 8)
        assert whole.parameters == part.parameters


class TestBetweenStepsAndAtThePeak:
    # In bytes a parameter, of two workers with Adam in fp32; docs/layouts.md has the measured figures.
    @pytest.mark.parametrize(("stage", "resident"), [(0, 12), (1, 10), (2, 10), (3, 8)])
    def test_what_stays_falls_with_the_stage(self, stage: int, resident: int) -> None:
        assert zero(stage, 2).resident == 1000 * resident

    def test_the_peak_falls_with_the_stage(self) -> None:
        peaks = [zero(stage, 2, model=LARGE_MODEL).total for stage in range(4)]
        assert peaks == sorted(peaks, reverse=True)
        assert len(set(peaks)) == 4

    @pytest.mark.parametrize(
        ("stage", "precision", "copies"),
        [
            (0, "fp32", 4 * LARGE),  # all gradients in one tensor
            (1, "fp32", 4 * LARGE // 2),  # those of the partition
            (2, "fp32", 4 * LARGE // 2),
            (2, "bf16", (2 + 4) * LARGE // 2),  # and once more in fp32
            (3, "fp32", 5 * BUCKET_BYTES),
        ],
    )
    def test_copies(self, stage: int, precision: str, copies: int) -> None:
        data = 64 if stage == 3 else 2
        assert zero(stage, data, model=LARGE_MODEL, batch=64, precision=precision).buffers == copies

    def test_a_small_model_has_a_whole_bucket_all_the_same(self) -> None:
        assert zero(1, 2).buffers == BUCKET_BYTES

    def test_zero_2_sums_its_micro_batches(self) -> None:
        once, thrice = (zero(2, 2, model=LARGE_MODEL, batch=6, micro_batch=size) for size in (3, 1))
        assert thrice.buffers - once.buffers == 4 * LARGE // 2 + BUCKET_BYTES
        assert thrice.resident == once.resident


class TestOffload:
    def test_the_optimizer_leaves_the_device(self) -> None:
        plain = zero(2, 2, precision="bf16")
        found = of(ParallelLayout(data=2, zero_stage=2, offload="cpu"), precision="bf16")
        assert found.optimizer_states == plain.optimizer_states
        # States and master weights; fp32 gradients; the updated weights on their way back.
        assert found.offloaded == 500 * (12 + 4 + 2)
        assert found.on_device < plain.on_device
        assert found.total > plain.total

    def test_at_stage_3_the_parameters_leave_too(self) -> None:
        found = of(ParallelLayout(data=2, zero_stage=3, offload="cpu"))
        assert found.offloaded == 500 * (4 + 4 + 12 + 4)
        assert found.resident == found.offloaded


class TestTensorAndPipeline:
    def test_tensor_peers_divide_what_is_split(self) -> None:
        found = of(ParallelLayout(tensor=4), BLOCKS)
        assert found.parameters == 4 * (600 // 4 + 400 // 4 + 100 + 100)
        assert found.activations == 4 * 32 * (30 + 80 // 4 + 20 + 20)

    def test_a_pipeline_is_as_large_as_its_largest_stage(self) -> None:
        # Stages are balanced by multiply-accumulates: (10 + 60) and 70. The tied table is in both.
        found = of(ParallelLayout(pipeline=2), BLOCKS, micro_batch=8)
        assert found.parameters == 4 * (600 + 500)
        assert found.activations == 4 * 8 * (30 + 100) * 2  # two micro-batches are on their way
        assert found.batch == 256 * 8 * 2

    def test_the_last_stage_has_the_tied_parameters_too(self) -> None:
        blocks = (*BLOCKS.blocks[:2], BLOCKS.blocks[2].model_copy(update={"params": 2900}))
        found = of(ParallelLayout(pipeline=2), BLOCKS.model_copy(update={"blocks": blocks}), micro_batch=32)
        assert found.parameters == 4 * (600 + 2900)

    def test_tied_parameters_are_divided_where_the_table_is(self) -> None:
        model = BLOCKS.model_copy(update={"blocks": (BLOCKS.blocks[0], BLOCKS.blocks[2])})
        found = of(ParallelLayout(pipeline=2, tensor=2), model, micro_batch=32)
        assert found.parameters == 4 * (600 // 2 + 100)

    def test_no_more_micro_batches_are_on_their_way_than_there_are(self) -> None:
        found = of(ParallelLayout(pipeline=3), BLOCKS, micro_batch=32)
        # The middle block, and what it receives from the first.
        assert found.activations == 4 * 32 * (100 + 8)

    def test_zero_divides_what_a_stage_has(self) -> None:
        found = of(ParallelLayout(data=2, pipeline=2, zero_stage=1), BLOCKS)
        assert found.optimizer_states == 12 * (600 + 500) // 2


class TestCommunication:
    def of(self, layout: ParallelLayout, model: ModelSummary = MODEL, *, micro_batch: int | None = None) -> int:
        share = share_batch(32, layout.data, micro_batch, pipeline=layout.pipeline)
        return communication_bytes(model, layout, share, precision="fp32")

    @pytest.mark.parametrize(("stage", "volumes"), [(0, 2), (1, 3), (2, 3), (3, 3)])
    def test_data_parallel_workers_exchange_gradients_and_parameters(self, stage: int, volumes: int) -> None:
        """A ring sends (N-1)/N of each volume (Rajbhandari et al. 2020, section 7)."""
        assert self.of(ParallelLayout(data=4, zero_stage=stage)) == volumes * 4000 * 3 // 4
        assert self.of(ParallelLayout(data=1, zero_stage=stage)) == 0

    @pytest.mark.parametrize(("stage", "volumes"), [(0, 2), (1, 3), (2, 9), (3, 12)])
    def test_what_is_done_for_each_micro_batch(self, stage: int, volumes: int) -> None:
        assert self.of(ParallelLayout(data=4, zero_stage=stage), micro_batch=2) == volumes * 4000 * 3 // 4

    def test_tensor_peers_sum_activations_in_both_directions(self) -> None:
        # 8 values a sample, forward and backward, by rings of 2 (t-1)/t.
        assert self.of(ParallelLayout(tensor=4), BLOCKS) == 4 * (2 * 8 * 32) * 2 * 3 // 4

    def test_stages_hand_on_activations_and_gradients(self) -> None:
        untied = BLOCKS.model_copy(update={"tied_params": 0})
        # The middle stage sends its 8 outputs a sample, and the gradients of 8 inputs.
        assert self.of(ParallelLayout(pipeline=3), untied) == 4 * 32 * (8 + 8)
        # The ends send one of the two, and sum the gradient of what they have in common.
        assert self.of(ParallelLayout(pipeline=2), BLOCKS) == 4 * (32 * 8 + 600)

    def test_the_worker_that_sends_most_counts(self) -> None:
        # The first stage has 1100 parameters, the second 100.
        untied = BLOCKS.model_copy(update={"tied_params": 0})
        assert self.of(ParallelLayout(data=2, pipeline=2), untied) == 4 * (2 * 1100 // 2 + 16 * 8)


def test_sizes_of_samples() -> None:
    image = Signature(kind="image", input_shape=(1, 8, 8), outputs=10)
    tokens = Signature(kind="tokens", input_shape=(16,), outputs=32, num_codes=(32,), per_step=True)
    assert sample_bytes(image) == 4 * 64 + 8
    assert sample_bytes(tokens) == 8 * 16 + 8 * 16
