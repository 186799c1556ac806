"""Plans: what will run and why, which changes give another result, the layout, and that planning is light."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.layout import BatchShare, ParallelLayout, refusal
from jobs.records import BlockSummary, DatasetInfo, JobPlan, ModelSummary, StagePlan
from jobs.spec import JobSpec
from orchestrator.layouts import (
    PROCESS_BYTES,
    Variant,
    available_bytes,
    bubble,
    choose_layout,
    legal_layouts,
    planned_layouts,
    relative_work,
)
from orchestrator.plan import plan_job, searched_variants
from orchestrator.plan_text import plan_lines
from orchestrator.runs import Storage
from orchestrator.stage_configs import SCHEMA_VERSIONS, prune_config, train_config

DIGITS: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16]}},
    "train": {"epochs": 2, "batch_size": 32},
}
PRUNE: dict[str, Any] = {"compress.prune.ratio": 0.4}
SEARCH: dict[str, Any] = {"search.space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-1]}}}
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "runs")


def spec_of(values: dict[str, Any] | None = None) -> JobSpec:
    return JobSpec.parse(DIGITS).replace(values or {})


def stages_of(plan: JobPlan) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan.stages}


def actions(plan: JobPlan) -> dict[str, str]:
    return {stage.name: stage.action for stage in plan.stages}


def write_table(path: Path, num_rows: int = 80) -> Path:
    lines = [f"{i},{i * 0.5},{'ab'[i % 2]},{i % 3}" for i in range(num_rows)]
    path.write_text("\n".join(["age,height,kind,label", *lines]) + "\n")
    return path


def table_spec(path: Path, values: dict[str, Any] | None = None) -> JobSpec:
    base = {"data": {"source": {"kind": "csv", "path": str(path)}, "target": "label"}, "model": {"name": "mlp"}}
    return JobSpec.parse(DIGITS | base).replace(values or {})


class TestFacts:
    def test_digits(self, storage: Storage) -> None:
        plan = plan_job(spec_of(), storage)
        assert plan.dataset.input_shape == (1, 8, 8)
        assert plan.dataset.num_samples == {"train": 1437, "validation": 180, "test": 180}
        assert plan.dataset.outputs == 10
        assert plan.total_steps == 2 * 1437 // 32
        assert plan.batch == {"global": 32, "micro": 32, "accumulation": 1}
        assert plan.model.params == (25 * 4 + 4) + (4 * 16 * 16 + 16) + (16 * 10 + 10)
        assert plan.layout == {"data": 1, "tensor": 1, "pipeline": 1, "zero_stage": 0, "offload": "none"}
        assert plan.memory.parameters == 4 * plan.model.params
        assert plan.demand.memory_bytes_per_worker == plan.memory.total + PROCESS_BYTES
        assert plan.deepspeed["train_batch_size"] == 32
        assert plan.spec == spec_of().resolved()
        assert plan.warnings == ()
        assert JobPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    def test_a_table(self, storage: Storage, tmp_path: Path) -> None:
        plan = plan_job(table_spec(write_table(tmp_path / "t.csv")), storage)
        assert plan.dataset.classes == ("0", "1", "2")
        assert plan.dataset.input_shape == (2 + 3,)  # two numbers; a, b and unknown
        assert plan.dataset.num_samples == {"train": 64, "validation": 8, "test": 8}

    def test_regression(self, storage: Storage) -> None:
        values = {"data.source.name": "diabetes", "model": {"name": "mlp"}, "train.loss": "mse"}
        plan = plan_job(spec_of(values), storage)
        assert (plan.dataset.task, plan.dataset.outputs, plan.spec["metric"]) == ("regression", 1, "rmse")

    def test_steps_are_as_asked(self, storage: Storage) -> None:
        assert plan_job(JobSpec.parse(DIGITS | {"train": {"steps": 7}}), storage).total_steps == 7

    def test_nothing_is_written(self, storage: Storage, tmp_path: Path) -> None:
        large = tmp_path / "large.npz"
        np.savez(large, x=np.random.default_rng(0).random((3000, 64)), y=np.arange(3000) % 2)
        os.utime(large, (1, 1))
        spec = JobSpec.parse(
            DIGITS | {"data": {"source": {"kind": "npz", "path": str(large)}}, "model": {"name": "mlp"}}
        )
        before = plan_job(spec, storage).hashes
        assert not storage.root.exists()
        # Where a run made the folder, the digests of large files are kept; nothing else changes.
        storage.datasets.mkdir(parents=True)
        assert plan_job(spec, storage).hashes == before
        assert [path.name for path in storage.root.rglob("*") if path.is_file()] == ["digests.json"]
        assert plan_job(spec, storage).hashes == before


class TestStages:
    def test_a_first_run(self, storage: Storage) -> None:
        plan = plan_job(spec_of(), storage)
        assert actions(plan) == {
            "prepare": "run",
            "train": "run",
            "prune": "skip",
            "low_rank": "skip",
            "export": "run",
            "quantize": "skip",
            "pack": "skip",
            "measure": "run",
            "test": "run",
        }
        stages = stages_of(plan)
        assert stages["prepare"].reason == "not prepared yet"
        assert stages["train"].reason == "no result yet"
        assert stages["prune"].reason == "the spec has no compress.prune"
        assert stages["train"].hash == plan.hashes["train"]

    def test_a_pack(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"compress.pack": {}}), storage)
        stages = stages_of(plan)
        assert stages["share"].hash == plan.hashes["share"]
        assert stages["pack"].action == "run"
        other = plan_job(spec_of({"compress.pack": {"codebook_bits": 4}}), storage)
        assert other.hashes["train"] == plan.hashes["train"]
        assert other.hashes["share"] != plan.hashes["share"]

    def test_a_search_of_packs(self, storage: Storage) -> None:
        space = {"search.space": {"compress.pack.sparsity": {"uniform": [0.8, 0.95]}}}
        spec = JobSpec.parse(spec_of(space).document())  # with a look at the space
        assert spec.packs
        stages = stages_of(plan_job(spec, storage))
        assert stages["share"].reason == stages["pack"].reason == "depends on what the search finds"

    def test_a_search(self, storage: Storage) -> None:
        plan = plan_job(spec_of(SEARCH | PRUNE | {"compress.quantize.schemes": ["fp16"]}), storage)
        assert [stage.name for stage in plan.stages][:3] == ["prepare", "search", "train"]
        stages = stages_of(plan)
        assert stages["train"].hash is None
        assert stages["train"].reason == "depends on what the search finds"
        assert stages["prune"].action == "run"
        assert "fp16" in stages["quantize"].reason
        assert "search/compress" not in stages

    @pytest.mark.parametrize(
        ("search", "said"),
        [
            ({"search.algorithm": "tpe", "search.trials": 10}, "draws its first 10 trials at random"),
            ({"search.algorithm": "nsga2", "search.trials": 4}, "all 4 trials belong to the first"),
            ({"search.algorithm": "cmaes", "search.trials": 4}, "a generation of cmaes has 4 trials"),
            (
                {
                    "search.algorithm": "grid",
                    "search.trials": 5,
                    "search.space": {"train.batch_size": {"int": [8, 16]}},
                },
                "the grid has 9 points, of which 5 are tried",
            ),
            ({"search.algorithm": "tpe", "search.trials": 11}, ""),
        ],
    )
    def test_what_a_search_can_not_do_with_so_few_trials_is_said(
        self, search: dict[str, Any], said: str, storage: Storage
    ) -> None:
        warnings = plan_job(spec_of(SEARCH | search), storage).warnings
        assert any(said in warning for warning in warnings) == bool(said)

    def test_keys_with_a_condition_are_planned_with_their_parents(self, storage: Storage) -> None:
        space = {
            "train.batch_size": {"choice": [8, 16], "when": {"train.optimizer.name": "sgd"}},
            "train.optimizer.name": {"choice": ["sgd", "adamw"]},
        }
        spec = spec_of({"search.space": space})
        plan = plan_job(spec, storage)
        tried = searched_variants(spec, plan.dataset, plan.model)
        assert [each.value for each in tried] == [8, 16]
        assert all(each.variant.spec.train.optimizer.name == "sgd" for each in tried)

    def test_a_search_of_compression_alone(self, storage: Storage) -> None:
        space = {"search.space": {"compress.prune.ratio": {"uniform": [0.2, 0.5]}}}
        plan = plan_job(spec_of(space), storage)
        assert [stage.name for stage in plan.stages][:4] == ["prepare", "train", "search/compress", "prune"]
        assert stages_of(plan)["train"].hash == plan.hashes["train"]
        assert stages_of(plan)["prune"].action == "run"  # although the spec itself has no compress.prune

    def test_what_is_complete_is_reused(self, storage: Storage) -> None:
        spec = spec_of(PRUNE)
        fingerprint = plan_job(spec, storage).hashes["dataset"]
        storage.datasets.mkdir(parents=True)
        (storage.datasets / fingerprint).mkdir()
        (storage.datasets / fingerprint / "dataset.json").write_text("{}")
        trained, _ = storage.perform(
            "train",
            inputs={"dataset": fingerprint},
            config=train_config(spec),
            code="",
            schema_version=SCHEMA_VERSIONS["train"],
            do=lambda _: {},
        )
        assert trained is not None
        plan = plan_job(spec, storage)
        assert actions(plan) | {"prepare": "reuse", "train": "reuse", "prune": "run"} == actions(plan)
        assert stages_of(plan)["train"].reason == "a complete result is in the storage"
        storage.perform(
            "prune",
            inputs={"dataset": fingerprint, "parent": trained.hash},
            config=prune_config(spec),
            code="",
            schema_version=SCHEMA_VERSIONS["prune"],
            do=lambda _: None,
        )
        assert stages_of(plan_job(spec, storage))["prune"].reason == "goes on from what an earlier attempt left"


SAME: list[dict[str, Any]] = [
    {"layout": {"zero_stage": 2}},
    {"layout": {"micro_batch": 8}},
    {"resources.workers": 2},
    {"resources.workers": 4, "layout": {"data": 4, "zero_stage": 3}},
    {"resources.workers": 4, "layout": {"tensor": 2, "pipeline": 2, "zero_stage": 1, "offload": "cpu"}},
    {"resources.cpus_per_worker": 2},
    {"retry.max_failures": 0},
    {"train.checkpoint": {"every_steps": 7, "keep": 1}},
    {"name": "other"},
    {"project": "other"},
    {"priority": 9},
    {"code.working_dir": "/elsewhere"},
    {"compress.quantize.schemes": ["fp16"]},
    {"compress.budget.max_bytes": 1000},
    {"compress.pick": "fastest"},
    {"export.formats": ["onnx"]},
    PRUNE,
    # The defaults, written out.
    {"train.optimizer": {"name": "adamw", "lr": 1e-3}, "train.seed": 0, "data.split.seed": 0},
]
OTHER: list[dict[str, Any]] = [
    {"train.optimizer.lr": 0.002},
    {"train.optimizer": {"name": "adam"}},
    {"train.optimizer.weight_decay": 0.1},
    {"train.schedule": "cosine"},
    {"train.seed": 1},
    {"train.epochs": 3},
    {"train.batch_size": 64},
    {"train.label_smoothing": 0.1},
    {"train.class_weights": "balanced"},
    {"train.gradient_clip": 1.0},
    {"train.precision": "bf16"},
    {"model.args.dropout": 0.1},
    {"model.args.conv_widths": [5]},
    {"model": {"name": "mlp"}},
    {"data.normalize": "unit"},
    {"data.augment": ["horizontal_flip"]},
    {"data.split.seed": 1},
    {"data.split.validation": 0.2},
    {"data.split.calibration": 64},
    {"data.split.train": 100},
    {"data.source.name": "breast_cancer", "model": {"name": "mlp"}},
    {"metric": "f1_macro"},
]


class TestHashes:
    @given(
        workers=st.sampled_from([1, 2, 4]),
        zero_stage=st.integers(0, 3),
        micro_batch=st.sampled_from([None, 1, 2, 8]),
        cpus=st.integers(1, 8),
        failures=st.integers(0, 9),
        every_steps=st.integers(1, 999),
    )
    @settings(max_examples=30, deadline=None)
    def test_where_and_how_a_training_runs_leaves_its_hash(
        self, workers: int, zero_stage: int, micro_batch: int | None, cpus: int, failures: int, every_steps: int
    ) -> None:
        spec = spec_of(
            {
                "resources": {"workers": workers, "cpus_per_worker": cpus},
                "layout": {"data": workers, "zero_stage": zero_stage, "micro_batch": micro_batch},
                "retry.max_failures": failures,
                "train.checkpoint.every_steps": every_steps,
            }
        )
        storage = Storage(Path("/nowhere"))
        assert plan_job(spec, storage).hashes == plan_job(spec_of(), storage).hashes

    @pytest.mark.parametrize("change", SAME, ids=json.dumps)
    def test_each_alone(self, change: dict[str, Any], storage: Storage) -> None:
        assert plan_job(spec_of(change), storage).hashes["train"] == plan_job(spec_of(), storage).hashes["train"]

    @pytest.mark.parametrize("change", OTHER, ids=json.dumps)
    def test_what_makes_a_difference_changes_the_hash(self, change: dict[str, Any], storage: Storage) -> None:
        assert plan_job(spec_of(change), storage).hashes["train"] != plan_job(spec_of(), storage).hashes["train"]

    def test_all_the_differences_differ(self, storage: Storage) -> None:
        hashes = [plan_job(spec_of(change), storage).hashes["train"] for change in OTHER]
        assert len(set(hashes)) == len(OTHER)

    @pytest.mark.parametrize(
        ("change", "changed"),
        [
            # In lists: the name of a test must not depend on the order within a set.
            ({"compress.prune.ratio": 0.5}, ["prune"]),
            ({"compress.prune.recover.epochs": 1}, ["prune"]),
            ({"train.optimizer.lr": 0.002}, ["prune", "train"]),
            ({"data.split.seed": 1}, ["dataset", "prune", "train"]),
            ({"data.normalize": "none"}, ["prune", "train"]),
            ({"compress.quantize.schemes": ["fp16"]}, []),
        ],
        ids=str,
    )
    def test_a_change_goes_downstream_alone(self, change: dict[str, Any], changed: list[str], storage: Storage) -> None:
        before, after = (plan_job(spec_of(PRUNE | values), storage).hashes for values in ({}, change))
        assert sorted(name for name in before if before[name] != after[name]) == changed

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({"search.concurrency": 1}, True),
            ({"search.winners": 2}, True),
            ({"resources.workers": 2}, True),
            ({"search.trials": 5}, False),
            ({"search.seed": 1}, False),
            ({"search.algorithm": "random"}, False),
            ({"train.seed": 1}, False),
        ],
        ids=str,
    )
    def test_a_search_is_the_same_under_any_concurrency(
        self, change: dict[str, Any], same: bool, storage: Storage
    ) -> None:
        before, after = (plan_job(spec_of(SEARCH | values), storage).hashes["search"] for values in ({}, change))
        assert (before == after) is same

    def test_the_spelling_of_a_path_makes_no_difference_and_the_contents_do(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_table(tmp_path / "t.csv")
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "copy.csv").write_bytes(path.read_bytes())
        (tmp_path / "link.csv").symlink_to(path)
        monkeypatch.chdir(tmp_path)
        spellings = [path, "t.csv", "./t.csv", "below/../t.csv", "link.csv", "below/copy.csv"]
        plans = [plan_job(table_spec(Path(place)), storage).hashes for place in map(str, spellings)]
        assert all(hashes == plans[0] for hashes in plans)
        write_table(path, 81)
        changed = plan_job(table_spec(path), storage).hashes
        assert changed["dataset"] != plans[0]["dataset"]
        assert changed["train"] != plans[0]["train"]

    def test_the_users_code_counts_where_it_is_used(
        self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = tmp_path / "code" / "mine.py"
        module.parent.mkdir()
        monkeypatch.setattr("orchestrator.plan.inspect_factory", lambda *_, **__: plan_job(spec_of(), storage).model)
        own = {"model": {"name": "mine:make"}, "code.working_dir": str(module.parent)}
        hashes = []
        for text in ("one = 1", "one = 2", "one = 1"):
            module.write_text(text)
            hashes.append(plan_job(spec_of(own), storage).hashes["train"])
        assert hashes[0] == hashes[2] != hashes[1]
        (module.parent / "notes.txt").write_text("no code")
        assert plan_job(spec_of(own), storage).hashes["train"] == hashes[0]
        without = plan_job(spec_of({"code.working_dir": str(module.parent)}), storage)
        assert without.hashes["train"] == plan_job(spec_of(), storage).hashes["train"]


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


def test_the_text_shows_every_section(storage: Storage) -> None:
    plan = plan_job(spec_of({"model.args.dropout": 0.1, "resources.workers": 2}), storage)
    text = "\n".join(plan_lines(plan))
    for part in (
        "small (project default, priority 0)",
        "builtin, classification, sample 1×8×8, 10 outputs; train 1,437, validation 180, test 180",
        "lenet: 1.31 k parameters",
        "layout-invariant: yes",
        "89 of 32 samples",
        "data 2 × tensor 1 × pipeline 1, ZeRO 0; batch 32 = micro 16 × accumulation 1 × data 2",
        "2 × (1 CPU, 0 GPU",
        "  * data 2 × tensor 1 × pipeline 1, ZeRO 0: ",
        "1.00× the work; chosen: of those that fit, the least work, then the least sent",
        "run    train",
        "skip   prune            the spec has no compress.prune",
        "train_micro_batch_size_per_gpu: 16",
        "max_metric_drop: 0.005",
    ):
        assert part in text, f"{part!r} is not in:\n{text}"


def test_the_text_shows_the_stages_of_a_pipeline(storage: Storage) -> None:
    layout = {"pipeline": 2, "zero_stage": 1, "offload": "cpu"}
    text = "\n".join(plan_lines(plan_job(spec_of({"resources.workers": 2, "layout": layout}), storage)))
    for part in (
        "layout   data 1 × tensor 1 × pipeline 2, ZeRO 1, offload cpu; batch 32 = micro 16 × accumulation 2 × data 1",
        "stages   stage 1: conv1; stage 2: linear1, classifier",
        "bubble   33% of a step: each stage waits for 1 of 3 turns",
        "; off the device ",
    ):
        assert part in text, f"{part!r} is not in:\n{text}"


HEAVY = ("torch", "ray", "deepspeed", "sklearn", "onnxruntime", "onnx", "optuna", "scipy")
PLAN_AND_LIST = """
import json, sys
from orchestrator import cli
sys.argv = ["thresher", "plan", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    packages = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"code": end.code, "packages": packages}), file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["digits", "csv"])
def test_planning_imports_nothing_heavy(kind: str, tmp_path: Path) -> None:
    spec = spec_of() if kind == "digits" else table_spec(write_table(tmp_path / "t.csv"))
    (tmp_path / "spec.json").write_text(json.dumps(spec.document()))
    ended = subprocess.run(
        [sys.executable, "-c", PLAN_AND_LIST, str(tmp_path / "spec.json"), "--runs", str(tmp_path / "runs"), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=PROJECT,
    )
    said = json.loads(ended.stderr.strip().splitlines()[-1])
    assert said["code"] == 0
    assert set(HEAVY) & set(said["packages"]) == set()
    plan = JobPlan.from_json(json.loads(ended.stdout))
    assert plan.spec == spec.resolved()
    assert not (tmp_path / "runs").exists()


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
