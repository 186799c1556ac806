"""The choice among legal layouts, for any model: memory, work and what is sent."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import spec_of

from jobs.errors import SpecError
from jobs.layout import BatchShare, ParallelLayout, refusal
from jobs.records import BlockSummary, DatasetInfo, ModelSummary
from orchestrator.planning.layouts import (
    Variant,
    available_bytes,
    bubble,
    choose_layout,
    legal_layouts,
    relative_work,
)

BLOCKS = st.builds(
    BlockSummary,
    name=st.just("block"),
    params=st.integers(1, 10_000_000),
    macs=st.integers(0, 10_000_000),
    activations=st.integers(0, 1000),
    output_shape=st.tuples(st.integers(1, 1000)),
    tensor_values=st.integers(0, 1000),
)


def made_of(blocks: list[BlockSummary], split: bool, tensor_width: int) -> ModelSummary:
    if split:
        blocks = [block.model_copy(update={"split_params": block.params, "split_macs": block.macs}) for block in blocks]
    return ModelSummary(
        blocks=tuple(blocks),
        params=sum(block.params for block in blocks),
        macs=sum(block.macs for block in blocks),
        activations=sum(block.activations for block in blocks),
        layout_invariant=True,
        tensor_width=tensor_width,
    )


INFO = DatasetInfo(kind="vector", input_shape=(8,), outputs=2, task="classification", num_samples={"train": 100})


class TestAuto:
    @given(
        blocks=st.lists(BLOCKS, min_size=1, max_size=6),
        split=st.booleans(),
        tensor_width=st.sampled_from([1, 2, 6, 8]),
        workers=st.integers(1, 8),
        batch=st.integers(1, 48),
        precision=st.sampled_from(["fp32", "bf16"]),
        workers_per_node=st.sampled_from([None, 1, 2]),
        memory_bytes=st.integers(1 << 30, 16 << 30),
    )
    @settings(max_examples=80, deadline=None)
    def test_every_candidate_is_legal_and_the_choice_the_best_that_fits(
        self,
        blocks: list[BlockSummary],
        split: bool,
        tensor_width: int,
        workers: int,
        batch: int,
        precision: str,
        workers_per_node: int | None,
        memory_bytes: int,
    ) -> None:
        spec = spec_of({"resources.workers": workers, "train.batch_size": batch, "train.precision": precision})
        own = Variant(spec, made_of(blocks, split, tensor_width))
        per_node = workers_per_node or workers
        legal = list(legal_layouts([own], workers_per_node=per_node))
        for layout in legal:
            assert layout.size == workers
            assert per_node % layout.tensor == 0
            assert refusal(layout, spec.layout_setting.of(own.model)) is None
            share = own.share(layout)
            assert share.micro * share.accumulation * layout.data == batch
            assert relative_work(own.model, layout, share) >= 1.0 - 1e-9
        assert len(set(legal)) == len(legal)
        if not legal:
            with pytest.raises(SpecError, match=r"train\.batch_size"):
                choose_layout(own, INFO, memory_bytes, workers_per_node=workers_per_node)
            return
        choice = choose_layout(own, INFO, memory_bytes, workers_per_node=workers_per_node)
        found = choice.alternatives
        assert choice.layout in legal
        assert len(found) == min(12, len(legal))
        assert [each.reason.startswith("chosen") for each in found] == [True] + [False] * (len(found) - 1)
        if found[0].fits:
            assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
        else:
            assert not any(each.fits for each in found)
        if found[0].fits or available_bytes(memory_bytes, workers) <= 0:
            work = [each.relative_work for each in found if each.fits is found[0].fits]
            assert all(later > earlier - 0.101 for earlier, later in pairwise(work))
        else:
            assert found[0].memory_bytes == min(each.memory_bytes for each in found)


@pytest.mark.parametrize(
    ("layout", "accumulation", "expected"),
    [
        (ParallelLayout(data=4), 1, 1.0),
        # Three turns for two micro-batches; the first stage has 60 of 100.
        (ParallelLayout(pipeline=2), 2, 3 / 2 * 0.6 * 2),
        # Of the 100, 80 are divided.
        (ParallelLayout(tensor=2), 1, (20 + 80 / 2) / 100 * 2),
        (ParallelLayout(data=2, tensor=2, pipeline=2), 4, 5 / 4 * (20 + 40 / 2) / 100 * 4),
    ],
    ids=str,
)
def test_relative_work(layout: ParallelLayout, accumulation: int, expected: float) -> None:
    blocks = [BlockSummary(name="a", params=1, macs=60, split_macs=40)]
    blocks += [BlockSummary(name="b", params=1, macs=40, split_macs=40)]
    model = made_of(blocks, False, 2)
    share = BatchShare(8 * accumulation * layout.data, 8, accumulation, layout.data)
    assert relative_work(model, layout, share) == pytest.approx(expected)


@pytest.mark.parametrize(("stages", "micro_batches", "expected"), [(1, 1, 0.0), (2, 1, 0.5), (4, 12, 0.2)])
def test_bubble(stages: int, micro_batches: int, expected: float) -> None:
    """Narayanan et al. 2021, section 2.2.1: a stage waits for p - 1 of m + p - 1 turns."""
    assert bubble(stages, micro_batches) == pytest.approx(expected)
