"""Plans: what will run and why, which changes give another result, the layout, and that planning is light."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.records import JobPlan, StagePlan
from jobs.spec import JobSpec
from orchestrator.plan import PROCESS_BYTES, plan_job
from orchestrator.plan_text import plan_lines
from orchestrator.runs import Storage
from orchestrator.stages import SCHEMA_VERSIONS, prune_config, train_config

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
            "export": "run",
            "quantize": "skip",
            "measure": "run",
            "test": "run",
        }
        stages = stages_of(plan)
        assert stages["prepare"].reason == "not prepared yet"
        assert stages["train"].reason == "no result yet"
        assert stages["prune"].reason == "the spec has no compress.prune"
        assert stages["train"].hash == plan.hashes["train"]

    def test_a_search(self, storage: Storage) -> None:
        plan = plan_job(spec_of(SEARCH | PRUNE | {"compress.quantize.schemes": ["fp16"]}), storage)
        assert [stage.name for stage in plan.stages][:3] == ["prepare", "search", "train"]
        stages = stages_of(plan)
        assert stages["train"].hash is None
        assert stages["train"].reason == "depends on what the search finds"
        assert stages["prune"].action == "run"
        assert "fp16" in stages["quantize"].reason
        assert "search/compress" not in stages

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
            ({"compress.prune.ratio": 0.5}, {"prune"}),
            ({"compress.prune.recover.epochs": 1}, {"prune"}),
            ({"train.optimizer.lr": 0.002}, {"train", "prune"}),
            ({"data.split.seed": 1}, {"dataset", "train", "prune"}),
            ({"data.normalize": "none"}, {"train", "prune"}),
            ({"compress.quantize.schemes": ["fp16"]}, set()),
        ],
        ids=str,
    )
    def test_a_change_goes_downstream_alone(self, change: dict[str, Any], changed: set[str], storage: Storage) -> None:
        before, after = (plan_job(spec_of(PRUNE | values), storage).hashes for values in ({}, change))
        assert {name for name in before if before[name] != after[name]} == changed

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


LARGE: dict[str, Any] = {"model": {"name": "mlp", "args": {"hidden": [4096, 4096]}}, "resources.workers": 4}


class TestLayouts:
    def stage_for(self, storage: Storage, bytes_per_parameter: float, **values: Any) -> JobPlan:
        """Plans with so much memory for each parameter, on each of the workers."""
        params = plan_job(spec_of(LARGE), storage).model.params
        each = PROCESS_BYTES + int(params * bytes_per_parameter) + (8 << 20)
        return plan_job(spec_of(LARGE | values), storage, memory_bytes=int(4 * each / 0.8) + 4)

    @pytest.mark.parametrize(("bytes_per_parameter", "stage"), [(16, 0), (10.1, 1), (7.1, 2), (4.1, 3)])
    def test_auto_takes_the_lowest_stage_that_fits(
        self, bytes_per_parameter: float, stage: int, storage: Storage
    ) -> None:
        # With Adam in fp32 over 4 workers a parameter takes 16, 10, 7 and 4 bytes.
        plan = self.stage_for(storage, bytes_per_parameter)
        assert plan.layout["zero_stage"] == stage
        assert plan.layout["data"] == 4
        assert plan.deepspeed.get("zero_optimization", {}).get("stage", 0) == stage
        assert plan.batch == {"global": 32, "micro": 8, "accumulation": 1}
        assert not [warning for warning in plan.warnings if "GB" in warning]

    def test_what_fits_nowhere_is_warned_of(self, storage: Storage) -> None:
        plan = self.stage_for(storage, 2)
        assert plan.layout["zero_stage"] == 3
        (warning,) = plan.warnings
        assert "a worker needs about" in warning
        assert "layout.micro_batch" in warning

    def test_one_worker_has_nothing_to_divide(self, storage: Storage) -> None:
        plan = plan_job(spec_of(), storage, memory_bytes=1 << 20)
        assert plan.layout["zero_stage"] == 0
        assert len(plan.warnings) == 1

    def test_what_is_asked_for_is_what_is_planned(self, storage: Storage) -> None:
        layout = {"data": 4, "zero_stage": 1, "micro_batch": 2}
        plan = self.stage_for(storage, 100, layout=layout)
        assert plan.layout["zero_stage"] == 1
        assert plan.batch == {"global": 32, "micro": 2, "accumulation": 4}

    def test_the_plan_shows_what_was_considered_and_why(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"resources.workers": 2}), storage)
        assert [a.zero_stage for a in plan.alternatives] == [0, 1, 2, 3]
        assert [a.reason.startswith("chosen") for a in plan.alternatives] == [True, False, False, False]
        memory = [a.memory_bytes for a in plan.alternatives]
        assert memory == sorted(memory, reverse=True)
        assert plan.alternatives[0].memory_bytes == plan.memory.total
        asked = plan_job(spec_of({"resources.workers": 2, "layout": {"data": 2, "zero_stage": 3}}), storage)
        assert [a.reason for a in asked.alternatives] == ["chosen: asked for"]

    def test_bf16_takes_a_stage_that_keeps_fp32_weights(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"train.precision": "bf16"}), storage)
        assert plan.layout["zero_stage"] == 1
        assert plan.deepspeed["bf16"] == {"enabled": True}

    def test_our_own_layers_do_not_look_at_the_micro_batch(self, storage: Storage) -> None:
        plan = plan_job(spec_of({"model.args.dropout": 0.1, "model.args.batch_norm": True}), storage)
        assert plan.model.layout_invariant
        assert plan.warnings == ()

    def test_a_normalization_group_is_not_split_over_workers(self, storage: Storage) -> None:
        changes = {"model.args.batch_norm": True, "resources.workers": 2}  # 16 samples a worker, groups of 32
        with pytest.raises(SpecError, match=r"model\.args\.norm_group: .* 2, 4, 8, 16"):
            plan_job(spec_of(changes), storage)
        assert plan_job(spec_of({**changes, "model.args.norm_group": 16}), storage).batch["micro"] == 16


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
        "data 2, ZeRO 0: ",
        "chosen: the least communication that fits",
        "run    train",
        "skip   prune            the spec has no compress.prune",
        "train_micro_batch_size_per_gpu: 16",
        "max_metric_drop: 0.005",
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
