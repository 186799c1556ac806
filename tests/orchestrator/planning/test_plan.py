"""Plans: what will run and why, what the text says of it, and that planning is light."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_plans import DIGITS, PRUNE, SEARCH, actions, spec_of, stages_of, table_spec, write_table

from jobs.records import JobPlan
from jobs.spec import JobSpec
from orchestrator.planning.layouts import (
    PROCESS_BYTES,
)
from orchestrator.planning.plan import plan_job, searched_variants
from orchestrator.planning.plan_text import plan_lines
from orchestrator.runs import Storage
from orchestrator.stage_configs import SCHEMA_VERSIONS, prune_config, train_config

PROJECT = Path(__file__).parents[3]


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
