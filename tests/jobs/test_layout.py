"""Layouts as pure integers: ranks and coordinates, shares of a batch, stages, and which layouts are legal."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.layout import (
    RULES,
    ParallelLayout,
    Rule,
    Setting,
    block_costs,
    can_build_async_io,
    refusal,
    share_batch,
    stage_bounds,
    stages_of,
)
from jobs.records import BlockSummary, ModelSummary

DEGREES = st.integers(1, 6)
LAYOUTS = st.builds(ParallelLayout, data=DEGREES, tensor=DEGREES, pipeline=DEGREES)


class TestRanks:
    @given(LAYOUTS)
    @settings(max_examples=50, deadline=None)
    def test_each_rank_is_one_coordinate_and_each_coordinate_one_rank(self, layout: ParallelLayout) -> None:
        coordinates = [layout.coordinate(rank) for rank in range(layout.size)]
        assert len(set(coordinates)) == layout.size
        assert [layout.rank(coordinate) for coordinate in coordinates] == list(range(layout.size))

    def test_tensor_peers_are_neighbours_and_stages_lie_furthest_apart(self) -> None:
        layout = ParallelLayout(data=2, tensor=2, pipeline=2)
        assert [(c.pipeline, c.data, c.tensor) for c in map(layout.coordinate, range(8))] == [
            (pipeline, data, tensor) for pipeline in (0, 1) for data in (0, 1) for tensor in (0, 1)
        ]

    def test_no_other_ranks(self) -> None:
        with pytest.raises(ValueError, match="rank 4 is not in a layout of 4 workers"):
            ParallelLayout(data=4).coordinate(4)


class TestShares:
    @given(
        micro=st.integers(1, 16),
        accumulation=st.integers(1, 16),
        data=st.integers(1, 8),
        pipeline=st.integers(1, 6),
        norm_group=st.sampled_from([None, 2, 4]),
    )
    @settings(max_examples=100, deadline=None)
    def test_the_default_keeps_all_stages_at_work_where_it_can(
        self, micro: int, accumulation: int, data: int, pipeline: int, norm_group: int | None
    ) -> None:
        group = norm_group or 1
        per_rank = micro * accumulation * group
        share = share_batch(per_rank * data, data, None, norm_group, pipeline)
        assert share.micro * share.accumulation * share.data == per_rank * data
        assert share.micro % group == 0
        fitting = [m for m in range(group, per_rank + 1, group) if per_rank % m == 0 and per_rank // m >= pipeline]
        assert share.micro == max(fitting, default=per_rank)

    def test_what_was_asked_for_stays(self) -> None:
        assert share_batch(32, 2, 8, pipeline=4).accumulation == 2


class TestStages:
    @given(costs=st.lists(st.integers(1, 20), min_size=1, max_size=8), data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_no_partition_is_better(self, costs: list[int], data: st.DataObject) -> None:
        stages = data.draw(st.integers(1, len(costs)))
        bounds = stage_bounds(costs, stages)
        assert [index for stage in bounds for index in stage] == list(range(len(costs)))
        assert len(bounds) == stages
        assert all(bounds)

        def costliest(cuts: tuple[int, ...]) -> int:
            ends = (0, *cuts, len(costs))
            return max(sum(costs[a:b]) for a, b in pairwise(ends))

        best = min(map(costliest, combinations(range(1, len(costs)), stages - 1)))
        assert max(sum(costs[stage.start : stage.stop]) for stage in bounds) == best

    def test_the_later_stages_get_more_of_what_is_equal(self) -> None:
        assert stage_bounds([1] * 6, 4) == (range(1), range(1, 2), range(2, 4), range(4, 6))

    @pytest.mark.parametrize("stages", [0, 3])
    def test_every_stage_has_a_block(self, stages: int) -> None:
        with pytest.raises(ValueError, match=f"2 blocks can't be divided over {stages} stages"):
            stage_bounds([1, 1], stages)

    def test_a_block_without_products_costs_something(self) -> None:
        model = ModelSummary(
            blocks=tuple(BlockSummary(name=str(macs), params=1, macs=macs) for macs in (0, 8, 8)),
            params=3,
            macs=16,
            activations=0,
            layout_invariant=True,
        )
        assert block_costs(model) == (1, 8, 8)
        assert stages_of(model, 2) == (range(2), range(2, 3))


BLOCKS = tuple(BlockSummary(name=name, params=4, macs=4) for name in "abcde")
BARE = (*BLOCKS[:-1], BlockSummary(name="e", params=0, macs=40))
SETTING = Setting(workers=8, blocks=BLOCKS, tensor_width=12)
# By the name of the rule: a layout and a setting that it refuses, and the same made legal by what it allows.
CASES: dict[str, tuple[ParallelLayout, Setting, str, str, ParallelLayout, Setting]] = {
    "degrees whose product is not the number of workers": (
        ParallelLayout(data=3, tensor=2),
        SETTING,
        "layout.data",
        "layout.data = 4",
        ParallelLayout(data=4, tensor=2),
        SETTING,
    ),
    "fp16 without accelerators": (
        ParallelLayout(data=8, zero_stage=1),
        replace(SETTING, precision="fp16"),
        "train.precision",
        "fp32, bf16",
        ParallelLayout(data=8, zero_stage=1),
        replace(SETTING, precision="bf16"),
    ),
    "bf16 or fp16 with ZeRO 0": (
        ParallelLayout(data=8),
        replace(SETTING, precision="fp16", accelerator=True),
        "layout.zero_stage",
        "1, 2, 3",
        ParallelLayout(data=8, zero_stage=2),
        replace(SETTING, precision="fp16", accelerator=True),
    ),
    "a pipeline with ZeRO 2 or 3": (
        ParallelLayout(data=4, pipeline=2, zero_stage=2),
        SETTING,
        "layout.zero_stage",
        "0, 1",
        ParallelLayout(data=4, pipeline=2, zero_stage=1),
        SETTING,
    ),
    "tensor parallelism for a model that can't be divided": (
        ParallelLayout(data=4, tensor=2),
        replace(SETTING, no_tensor="it is a recurrence"),
        "layout.tensor",
        "1",
        ParallelLayout(data=8),
        replace(SETTING, no_tensor="it is a recurrence"),
    ),
    "a tensor degree that does not divide the model's widths": (
        ParallelLayout(tensor=8),
        SETTING,
        "layout.tensor",
        "1, 2, 3, 4, 6, 12",
        ParallelLayout(data=2, tensor=4),
        SETTING,
    ),
    "a pipeline for a model without blocks": (
        ParallelLayout(data=4, pipeline=2),
        replace(SETTING, no_pipeline="it is a single block"),
        "layout.pipeline",
        "1",
        ParallelLayout(data=8),
        replace(SETTING, no_pipeline="it is a single block"),
    ),
    "more stages than blocks": (
        ParallelLayout(pipeline=8),
        SETTING,
        "layout.pipeline",
        "1 to 5",
        ParallelLayout(data=2, pipeline=4),
        SETTING,
    ),
    "a stage without parameters": (
        ParallelLayout(data=4, pipeline=2),
        replace(SETTING, blocks=BARE),
        "layout.pipeline",
        "fewer stages",
        ParallelLayout(data=8),
        replace(SETTING, blocks=BARE),
    ),
    "offload with ZeRO 0": (
        ParallelLayout(data=8, offload="cpu"),
        SETTING,
        "layout.offload",
        "none, or a layout.zero_stage of 1 to 3",
        ParallelLayout(data=8, zero_stage=1, offload="cpu"),
        SETTING,
    ),
    "nvme below ZeRO 3": (
        ParallelLayout(data=8, zero_stage=2, offload="nvme"),
        SETTING,
        "layout.offload",
        "none, cpu, or a layout.zero_stage of 3",
        ParallelLayout(data=8, zero_stage=3, offload="nvme"),
        SETTING,
    ),
    "nvme without libaio": (
        ParallelLayout(data=8, zero_stage=3, offload="nvme"),
        replace(SETTING, async_io=False),
        "layout.offload",
        "none, cpu",
        ParallelLayout(data=8, zero_stage=3, offload="cpu"),
        replace(SETTING, async_io=False),
    ),
}


class TestLegality:
    def test_every_rule_has_a_case(self) -> None:
        assert list(CASES) == [rule.name for rule in RULES]

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_each_rule_refuses_at_its_path_and_says_what_is_allowed(self, rule: Rule) -> None:
        layout, setting, path, allowed, legal, legal_setting = CASES[rule.name]
        problem = refusal(layout, setting)
        assert problem is not None
        assert (problem.path, problem.allowed) == (path, allowed)
        assert problem.message == rule.reason(layout, setting)
        assert refusal(legal, legal_setting) is None

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_the_documentation_lists_each_rule(self, rule: Rule) -> None:
        assert rule.name in (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()

    def test_what_is_not_known_is_no_reason(self) -> None:
        assert refusal(ParallelLayout(tensor=7, pipeline=9), Setting()) is None

    @pytest.mark.parametrize(
        ("layout", "precision", "allowed"),
        [
            (ParallelLayout(data=4, pipeline=2), "bf16", "1"),
            (ParallelLayout(data=4, pipeline=2, zero_stage=3), "bf16", "1"),
        ],
    )
    def test_a_pipeline_in_bf16_has_one_stage_of_zero(
        self, layout: ParallelLayout, precision: str, allowed: str
    ) -> None:
        problem = refusal(layout, replace(SETTING, precision=precision))
        assert problem is not None
        assert (problem.path, problem.allowed) == ("layout.zero_stage", allowed)

    def test_workers_that_the_degrees_do_not_divide(self) -> None:
        problem = refusal(ParallelLayout(tensor=3), SETTING)
        assert problem is not None
        assert problem.allowed == "tensor × pipeline that divides 8: 1, 2, 4, 8"

    def test_a_setting_takes_over_what_the_model_is_fit_for(self) -> None:
        model = ModelSummary(
            blocks=(BlockSummary(name="a", params=1),),
            params=1,
            macs=0,
            activations=0,
            layout_invariant=True,
            tensor_width=4,
            no_pipeline="one block",
        )
        found = Setting(workers=2).of(model)
        assert found == Setting(workers=2, blocks=model.blocks, tensor_width=4, no_pipeline="one block")

    def test_libaio_is_looked_for_where_the_compiler_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.layout.INCLUDE_FOLDERS", ())
        monkeypatch.setattr("ctypes.util.find_library", lambda name: "libaio.so.1")
        assert not can_build_async_io()
        (tmp_path / "libaio.h").touch()
        monkeypatch.setenv("CPATH", f"/elsewhere:{tmp_path}")
        assert can_build_async_io()
        monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
        assert not can_build_async_io()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SpecError, match="a multiple of 2"):
        share_batch(33, 2, None, pipeline=2)
