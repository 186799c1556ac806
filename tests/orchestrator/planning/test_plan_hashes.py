"""Which changes of a spec give another result, and which the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import PRUNE, SEARCH, spec_of, table_spec, write_table

from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage

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
        monkeypatch.setattr(
            "orchestrator.planning.plan.inspect_factory", lambda *_, **__: plan_job(spec_of(), storage).model
        )
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
