"""The job spec: what it understands, what it keeps of what was written, and how one is made from another."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.spec import JobSpec
from jobs.spec.compress import Prune
from jobs.spec.data import Split
from jobs.spec.load import with_values
from jobs.spec.train import AdamW
from tests.jobs.small_specs import LARGE, SMALL

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_defaults() -> None:
    spec = JobSpec.parse(SMALL)
    assert spec.metric == "accuracy"
    assert spec.task == "classification"
    assert spec.metric_direction == "max"
    assert (spec.train.epochs, spec.train.steps, spec.train.batch_size) == (10, None, 128)
    assert spec.train.optimizer == AdamW(name="adamw", lr=1e-3, weight_decay=1e-2, betas=(0.9, 0.999), eps=1e-8)
    assert spec.train.schedule.name == "constant"
    assert spec.data.split == Split(validation=0.1, test=0.1, calibration=512, seed=0)
    assert (spec.layout, spec.num_workers, spec.retry.max_failures) == ("auto", 1, 3)
    assert spec.search is None
    assert spec.compress.prune is None
    assert spec.compress.quantize is None
    assert (spec.compress.budget.max_metric_drop, spec.compress.pick) == (0.005, "smallest")
    assert spec.export.formats == ("onnx", "safetensors")
    assert not spec.compresses_by_search
    assert not spec.uses_own_code


def test_regression_has_defaults_of_its_own() -> None:
    spec = JobSpec.parse(with_values(SMALL, {"train.loss": "mse"}))
    assert (spec.metric, spec.task, spec.metric_direction) == ("rmse", "regression", "min")


TEXT: dict[str, Any] = {
    "name": "words",
    "data": {"source": {"kind": "text", "path": "a.txt"}},
    "model": {"name": "mlp"},
}
TABLE: dict[str, Any] = {"source": {"kind": "csv", "path": "ratings.csv"}, "target": "rating"}


def test_text_without_a_target_makes_a_language_model() -> None:
    spec = JobSpec.parse(with_values(TEXT, {"train.label_smoothing": 0.1}))
    assert (spec.metric, spec.task, spec.metric_direction) == ("perplexity", "language_model", "min")
    for metric, direction in (("log_loss", "min"), ("accuracy", "max")):
        assert JobSpec.parse({**TEXT, "metric": metric}).metric_direction == direction


@pytest.mark.parametrize(
    ("loss", "metric", "task"), [("cross_entropy", "accuracy", "classification"), ("mse", "rmse", "regression")]
)
def test_text_with_a_target_does_not(loss: str, metric: str, task: str) -> None:
    source = {"kind": "text", "path": "reviews.jsonl"}
    spec = JobSpec.parse({**TEXT, "data": {"source": source, "target": "label"}, "train": {"loss": loss}})
    assert (spec.metric, spec.task) == (metric, task)


def test_defaults_of_text() -> None:
    def tokenizer(**asked: Any) -> dict[str, Any]:
        source = {"kind": "text", "path": "a.JSONL", **({"tokenizer": asked} if asked else {})}
        resolved = JobSpec.parse({**TEXT, "data": {"source": source}}).resolved()
        assert JobSpec.parse(resolved).resolved() == resolved
        assert resolved["data"]["source"]["column"] == "text"
        understood: dict[str, Any] = resolved["data"]["source"]["tokenizer"]
        return understood

    assert tokenizer() == {"file": None, "kind": "bpe", "vocab_size": 2048}
    assert tokenizer(kind="word")["vocab_size"] == 2048
    assert tokenizer(kind="char")["vocab_size"] is None
    assert tokenizer(file="tokenizer.json") == {"file": "tokenizer.json", "kind": None, "vocab_size": None}
    assert JobSpec.parse(TEXT).resolved()["data"]["source"]["column"] is None


def test_a_recommender_takes_codes_unless_told_otherwise() -> None:
    document = {"name": "films", "data": TABLE, "model": {"name": "recommender"}}
    spec = JobSpec.parse(document)
    assert spec.data.categories == "codes"
    assert spec.resolved()["data"]["categories"] == "codes"
    assert "categories" not in TABLE
    assert JobSpec.parse({**document, "model": {"name": "mlp"}}).data.categories == "one_hot"
    own = {**document, "model": {"name": "mine:make"}, "data": {**TABLE, "categories": "codes"}}
    assert JobSpec.parse(own).data.categories == "codes"


def test_steps_take_the_place_of_epochs() -> None:
    spec = JobSpec.parse(with_values(SMALL, {"train.steps": 5}))
    assert (spec.train.epochs, spec.train.steps) == (None, 5)


@pytest.mark.parametrize("document", [SMALL, LARGE], ids=["small", "large"])
def test_round_trips(document: dict[str, Any]) -> None:
    spec = JobSpec.parse(document)
    assert JobSpec.parse(spec.document()) == spec
    assert JobSpec.parse(spec.resolved()) == spec
    assert JobSpec.parse(json.loads(json.dumps(spec.resolved()))) == spec
    assert JobSpec.parse(yaml.safe_load(yaml.safe_dump(spec.document()))) == spec


def test_the_document_holds_what_was_written_and_the_resolved_all() -> None:
    spec = JobSpec.parse(LARGE)
    assert spec.document() == LARGE
    assert JobSpec.parse(SMALL).document() == SMALL
    part = with_values(SMALL, {"train.batch_size": 32})
    assert JobSpec.parse(part).document() == part
    resolved = spec.resolved()
    assert resolved["train"]["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "nesterov": True,
    }
    assert resolved["search"]["space"]["train.optimizer.lr"]["int"] is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_specs_and_fit_the_schema(path: Path) -> None:
    spec = JobSpec.load(path)
    assert JobSpec.parse(spec.document()) == spec
    validator().validate(yaml.safe_load(path.read_text()))


@cache
def validator() -> jsonschema.Draft202012Validator:
    """Of the spec's schema: checking that itself takes longer than checking a spec by it."""
    schema = JobSpec.model_json_schema(by_alias=True)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_there_are_examples() -> None:
    assert EXAMPLES


class TestReplace:
    def test_steps_may_replace_epochs_that_were_not_written(self) -> None:
        spec = JobSpec.parse(with_values(SMALL, {"train.batch_size": 32})).replace({"train.steps": 5})
        assert (spec.train.epochs, spec.train.steps) == (None, 5)

    def test_only_what_is_named_changes(self) -> None:
        spec = JobSpec.parse(LARGE)
        changed = spec.replace({"train.optimizer.lr": 0.02, "model.args.dropout": 0.3})
        assert changed.train.optimizer.lr == 0.02
        assert changed.resolved() == with_values(
            spec.resolved(), {"train.optimizer.lr": 0.02, "model.args.dropout": 0.3}
        )
        assert spec.train.optimizer.lr == 0.1  # the first is as it was

    def test_sections_that_were_not_written_are_made(self) -> None:
        changed = JobSpec.parse(SMALL).replace({"compress.prune.ratio": 0.3})
        assert changed.compress.prune == Prune(ratio=0.3)

    def test_a_key_of_a_default_keeps_the_default_around_it(self) -> None:
        spec = JobSpec.parse(SMALL)
        assert spec.replace({"train.optimizer.lr": 0.5}).train.optimizer == AdamW(name="adamw", lr=0.5)
        assert spec.replace({"train.schedule.warmup": 0.5}).train.schedule.name == "constant"

    @given(st.floats(1e-4, 1e-1), st.integers(1, 1000))
    @settings(max_examples=20, deadline=None)
    def test_replacing_back_gives_the_same(self, lr: float, batch_size: int) -> None:
        spec = JobSpec.parse(LARGE)
        there = spec.replace({"train.optimizer.lr": lr, "train.batch_size": batch_size})
        assert (there.train.optimizer.lr, there.train.batch_size) == (lr, batch_size)
        assert there.replace({"train.optimizer.lr": 0.1, "train.batch_size": 32}) == spec


def test_specs_are_frozen() -> None:
    spec = JobSpec.parse(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        spec.train.batch_size = 1
    with pytest.raises(ValidationError, match="frozen"):
        spec.data.split.seed = 1


def test_an_augmentation_may_be_one_word() -> None:
    words, sections = (
        JobSpec.parse(with_values(SMALL, {"data.augment": [step]}))
        for step in ("horizontal_flip", {"horizontal_flip": {}})
    )
    assert words == sections


def test_the_schema_is_one_and_names_every_section() -> None:
    schema = validator().schema
    assert set(schema["properties"]) == {
        "name",
        "project",
        "priority",
        "data",
        "metric",
        "code",
        "model",
        "train",
        "layout",
        "resources",
        "retry",
        "search",
        "compress",
        "export",
    }
    kinds = {"int", "logint", "uniform", "loguniform", "choice"}
    assert kinds | {"step", "when"} == set(schema["$defs"]["Dimension"]["properties"])
    validator().validate(LARGE)
    validator().validate(
        with_values(SMALL, {"train.schedule": "cosine", "data.augment": ["horizontal_flip"], "model.name": "a.b:c"})
    )
    for wrong in ({"train.epocs": 3}, {"train.schedule": "cosin"}, {"model.name": "lenett"}, {"metric": "acuracy"}):
        with pytest.raises(jsonschema.ValidationError):
            validator().validate(with_values(LARGE, wrong))


class TestSearch:
    def test_staged_searches_training_first_then_compression(self) -> None:
        search = JobSpec.parse(LARGE).search
        assert search is not None
        assert search.phases() == ("train", "compress")
        assert set(search.dimensions("train")) == {"train.optimizer.lr", "model.args.activation"}
        assert set(search.dimensions("compress")) == {"compress.prune.ratio"}
        assert (search.num_trials("train"), search.num_trials("compress")) == (4, 2)
        assert JobSpec.parse(LARGE).compresses_by_search

    def test_joint_searches_all_at_once(self) -> None:
        search = JobSpec.parse(with_values(LARGE, {"search.mode": "joint"})).search
        assert search is not None
        assert search.phases() == ("joint",)
        assert len(search.dimensions("joint")) == 3
        assert search.num_trials("joint") == 4

    def test_a_grid_is_no_larger_than_its_points(self) -> None:
        space = {"model.args.activation": {"choice": ["relu", "gelu"]}, "train.batch_size": {"int": [16, 18]}}
        search = JobSpec.parse(
            with_values(SMALL, {"search": {"algorithm": "grid", "trials": 100, "space": space}})
        ).search
        assert search is not None
        assert search.num_trials("train") == 6
        assert search.space["train.batch_size"].grid == (16, 17, 18)
