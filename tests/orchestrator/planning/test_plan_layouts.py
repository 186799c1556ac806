"""The layout that a plan chooses: legal, asked for, under auto, searched, elastic."""

from typing import Any

import pytest
from small_plans import PRUNE, spec_of

from jobs.errors import SpecError
from jobs.layout import ParallelLayout
from jobs.records import JobPlan
from orchestrator.planning.layouts import (
    PROCESS_BYTES,
    planned_layouts,
)
from orchestrator.planning.plan import plan_job, searched_variants
from orchestrator.planning.plan_text import plan_lines
from orchestrator.runs import Storage

# Widths that are prime: no tensor degree divides them.
LARGE: dict[str, Any] = {"model": {"name": "mlp", "args": {"hidden": [2053] * 24}}, "resources.workers": 4}
WIDE: dict[str, Any] = {"model": {"name": "mlp", "args": {"hidden": [512] * 4}}, "resources.workers": 4}


class TestLayouts:
    def plan_with(self, storage: Storage, bytes_per_parameter: float, **values: Any) -> JobPlan:
        """Plans with so much memory for each parameter, on each of the workers."""
        params = plan_job(spec_of(LARGE), storage).model.params
        each = PROCESS_BYTES + int(params * bytes_per_parameter) + (8 << 20)
        return plan_job(spec_of(LARGE | values), storage, memory_bytes=int(4 * each / 0.8) + 4)

    @pytest.mark.parametrize(("bytes_per_parameter", "stage"), [(20, 0), (12.1, 1), (9.1, 2), (5.1, 3)])
    def test_auto_takes_the_lowest_stage_that_fits(
        self, bytes_per_parameter: float, stage: int, storage: Storage
    ) -> None:
        # At the peak, with Adam in fp32 over 4 workers, a parameter takes 20, 12, 9 and 5 bytes.
        plan = self.plan_with(storage, bytes_per_parameter)
        assert plan.layout == {"data": 4, "tensor": 1, "pipeline": 1, "zero_stage": stage, "offload": "none"}
        assert plan.deepspeed.get("zero_optimization", {}).get("stage", 0) == stage
        assert plan.batch == {"global": 32, "micro": 8, "accumulation": 1}
        assert not [warning for warning in plan.warnings if "GB" in warning]

    def test_what_fits_nowhere_is_warned_of(self, storage: Storage) -> None:
        plan = self.plan_with(storage, 2)
        assert plan.memory.total == min(found.memory_bytes for found in plan.alternatives)
        assert plan.alternatives[0].reason == "chosen: the least memory; nothing fits"
        assert {found.reason for found in plan.alternatives[1:]} == {"needs more memory"}
        (warning,) = plan.warnings
        assert "a worker needs about" in warning
        assert "layout.micro_batch" in warning

    def test_more_workers_than_the_machine_holds_are_not_made_slower(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"resources.workers": 32}), storage, memory_bytes=8 << 30)
        assert plan.layout["data"] == 32
        assert plan.alternatives[0].reason.endswith("no room for so many workers at all")
        assert "more work" in {found.reason for found in plan.alternatives}

    def test_one_worker_has_nothing_to_divide(self, storage: Storage) -> None:
        plan = plan_job(spec_of(), storage, memory_bytes=1 << 20)
        assert [found.zero_stage for found in plan.alternatives] == [0]
        assert len(plan.warnings) == 1

    def test_what_is_asked_for_is_what_is_planned(self, storage: Storage) -> None:
        layout = {"data": 2, "pipeline": 2, "zero_stage": 1, "micro_batch": 4}
        plan = self.plan_with(storage, 100, layout=layout)
        assert plan.layout == {"data": 2, "tensor": 1, "pipeline": 2, "zero_stage": 1, "offload": "none"}
        assert plan.batch == {"global": 32, "micro": 4, "accumulation": 4}
        assert plan.deepspeed["pipeline"]

    def test_the_plan_shows_what_was_considered_and_why(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"resources.workers": 2, "model.args.linear_widths": [17]}), storage)
        assert [(found.data, found.pipeline, found.zero_stage) for found in plan.alternatives] == [
            (2, 1, 0),
            (2, 1, 1),
            (2, 1, 2),
            (2, 1, 3),
            (1, 2, 0),
        ]
        assert plan.alternatives[0].reason.startswith("chosen: of those that fit")
        assert [found.reason for found in plan.alternatives[1:]] == [*["sends more"] * 3, "more work"]
        assert plan.alternatives[0].memory_bytes == plan.memory.total
        assert plan.alternatives[0].relative_work == 1.0
        # One of two turns more, and the second stage has the convolution's products and more.
        assert plan.alternatives[-1].relative_work > 1.5
        asked = plan_job(spec_of({"resources.workers": 2, "layout": {"data": 2, "zero_stage": 3}}), storage)
        assert [found.reason for found in asked.alternatives] == ["chosen: asked for"]

    def test_a_model_with_large_layers_and_small_batches_is_divided_within_them(self, storage: Storage) -> None:
        plan = plan_job(spec_of(WIDE), storage)
        assert plan.layout == {"data": 1, "tensor": 4, "pipeline": 1, "zero_stage": 0, "offload": "none"}
        data_parallel = next(found for found in plan.alternatives if found.data == 4 and found.zero_stage == 0)
        assert data_parallel.reason == "sends more"

    def test_a_pipeline_is_taken_where_nothing_else_fits(self, storage: Storage) -> None:
        # ZeRO gathers a whole layer at a time, several times over; these are all of the model.
        values = {"model": {"name": "mlp", "args": {"hidden": [2053] * 4}}, "resources.workers": 4}
        params = plan_job(spec_of(values), storage).model.params
        each = PROCESS_BYTES + int(params * 8.9)
        plan = plan_job(spec_of(values), storage, memory_bytes=int(4 * each / 0.8) + 4)
        assert plan.layout["pipeline"] > 1
        assert plan.warnings == ()
        assert {found.reason for found in plan.alternatives if found.data == 4} == {"does not fit"}

    def test_offload_is_taken_where_nothing_fits_on_an_accelerator(self, storage: Storage) -> None:
        params = plan_job(spec_of(LARGE), storage).model.params
        values = LARGE | {"resources.workers": 1}
        memory = int((PROCESS_BYTES + int(params * 13)) / 0.8) + 4
        assert plan_job(spec_of(values), storage, memory_bytes=memory).layout["offload"] == "none"
        plan = plan_job(spec_of(values | {"resources.gpus_per_worker": 1}), storage, memory_bytes=memory)
        assert plan.layout == {"data": 1, "tensor": 1, "pipeline": 1, "zero_stage": 1, "offload": "cpu"}
        assert plan.memory.on_device == plan.alternatives[0].memory_bytes < plan.memory.total
        assert plan.deepspeed["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}

    def test_offload_without_an_accelerator_is_said_to_save_nothing(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"layout": {"zero_stage": 1, "offload": "cpu"}}), storage)
        assert "saves nothing here" in plan.warnings[0]

    @pytest.mark.parametrize(("precision", "gpus"), [("bf16", 0), ("fp16", 1)])
    def test_mixed_precision_takes_a_stage_that_keeps_fp32_weights(
        self, precision: str, gpus: int, storage: Storage
    ) -> None:
        plan = plan_job(spec_of({"train.precision": precision, "resources.gpus_per_worker": gpus}), storage)
        assert plan.layout["zero_stage"] == 1
        assert plan.deepspeed[precision] == {"enabled": True}

    def test_our_own_layers_do_not_look_at_the_micro_batch(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"model.args.dropout": 0.1, "model.args.batch_norm": True}), storage)
        assert plan.model.layout_invariant
        assert plan.warnings == ()

    def test_a_normalization_group_is_not_split_over_workers(self, storage: Storage) -> None:
        # 16 samples a worker, groups of 32
        changes = {"model.args.batch_norm": True, "resources.workers": 2, "layout": {"data": 2}}
        with pytest.raises(SpecError, match=r"model\.args\.norm_group: .* 2, 4, 8, 16"):
            plan_job(spec_of(changes), storage)
        assert plan_job(spec_of({**changes, "model.args.norm_group": 16}), storage).batch["micro"] == 16

    @pytest.mark.parametrize(
        "space",
        [
            {"train.batch_size": {"choice": [32, 33]}},
            {"train.precision": {"choice": ["fp32", "bf16"]}},
            {"model.args.kernel": {"choice": [3, 5]}},
        ],
        ids=lambda space: next(iter(space)),
    )
    def test_auto_serves_all_that_a_search_may_try(self, space: dict[str, Any], storage: Storage) -> None:
        spec = spec_of({"search.space": space, "resources.workers": 2})
        plan = plan_job(spec, storage)
        layout = ParallelLayout(**plan.layout)
        for each in searched_variants(spec, plan.dataset, plan.model):
            each.variant.share(layout)
        assert (layout.data, layout.zero_stage) == {
            "train.batch_size": (1, 0),
            "train.precision": (2, 1),
            "model.args.kernel": (2, 0),
        }[next(iter(space))]

    def test_the_recovery_after_pruning_needs_a_batch_that_all_workers_divide(self, storage: Storage) -> None:
        changes = {"resources.workers": 2, "layout": {"pipeline": 2}, "train.batch_size": 33}
        assert plan_job(spec_of(changes), storage).layout["pipeline"] == 2
        with pytest.raises(SpecError, match=r"train\.batch_size: .*recovery after pruning.*a multiple of 2"):
            plan_job(spec_of(changes | PRUNE), storage)
        assert plan_job(spec_of(changes | PRUNE | {"train.batch_size": 34}), storage).warnings == ()

    def test_a_recovery_that_may_not_fit_is_warned_of(self, storage: Storage) -> None:
        layout = {"pipeline": 4, "zero_stage": 1}
        assert self.plan_with(storage, 8, layout=layout).warnings == ()
        (warning,) = self.plan_with(storage, 8, layout=layout, **PRUNE).warnings
        assert "the recovery after pruning is data-parallel" in warning


class TestElastic:
    def test_each_number_of_workers_with_a_legal_layout_has_one(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"resources.workers": [1, 7]}), storage)
        sizes = [layout.size for layout in planned_layouts(plan)]
        assert sizes == [6, 4, 3, 2, 1]  # 32 samples, three blocks and two channels do not divide over five or seven
        assert (plan.demand.fewest_workers, plan.demand.workers) == (1, 6)
        text = "\n".join(plan_lines(plan))
        assert "1 to 6 × (1 CPU" in text
        assert "fewer    2 workers" in text

    def test_the_result_does_not_depend_on_it(self, storage: Storage) -> None:
        fixed = plan_job(spec_of({"resources.workers": 2}), storage)
        elastic = plan_job(spec_of({"resources.workers": [1, 4]}), storage)
        assert fixed.hashes == elastic.hashes

    def test_a_range_without_a_legal_layout(self, storage: Storage) -> None:
        with pytest.raises(SpecError, match="no number of workers from 17 to 19 has a legal layout") as caught:
            plan_job(spec_of({"resources.workers": [17, 19]}), storage)
        assert caught.value.problems[0].path == "resources.workers"

    def test_a_layout_of_ones_own_is_for_one_number_of_workers(self) -> None:
        with pytest.raises(SpecError, match="a layout for each number of workers"):
            spec_of({"resources.workers": [1, 2], "layout": {"data": 2}})
