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
from jobs.spec.compress import Compress, Prune, Quantize, Recover
from jobs.spec.data import Augmentation, BuiltinSource, Data, HorizontalFlip, Split
from jobs.spec.load import with_values
from jobs.spec.model import LenetArgs, LenetModel
from jobs.spec.read import parse_yaml
from jobs.spec.search import Dimension, Search
from jobs.spec.train import AdamW, Cosine, Layout, Resources, Sgd, Train

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}
LARGE: dict[str, Any] = {
    "name": "large",
    "project": "tests",
    "priority": -5,
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64, "seed": 7},
        "normalize": "unit",
        "augment": [{"random_crop": {"padding": 1}}, {"horizontal_flip": {}}, {"rotate": {"degrees": 8.0}}],
    },
    "metric": "f1_macro",
    "model": {"name": "lenet", "args": {"conv_widths": [4, 8], "kernel": 3, "dropout": 0.1}},
    "train": {
        "steps": 20,
        "batch_size": 32,
        "class_weights": "balanced",
        "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True},
        "schedule": {"name": "step", "milestones": [0.3, 0.6]},
        "gradient_clip": 1.0,
    },
    "layout": {"data": 2, "zero_stage": 1, "micro_batch": 8},
    "resources": {"workers": 2},
    "search": {
        "trials": 4,
        "space": {
            "train.optimizer.lr": {"loguniform": [0.001, 0.1]},
            "model.args.activation": {"choice": ["relu", "gelu"]},
            "compress.prune.ratio": {"uniform": [0.2, 0.5]},
            "train.checkpoint": {"choice": []},
        },
        "objectives": {"metric": "max", "bytes": "min"},
    },
    "compress": {
        "prune": {"ratio": 0.4, "recover": {"epochs": 1, "distill": {"weight": 0.3}}},
        "quantize": {"schemes": ["int8_static"]},
        "budget": {"max_bytes": 100000, "max_metric_drop": None},
    },
    "export": {"formats": ["onnx"]},
}
del LARGE["search"]["space"]["train.checkpoint"]


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


class TestOverrides:
    @pytest.mark.parametrize(
        ("assignment", "read"),
        [
            ("train.optimizer.lr=1e-2", lambda spec: spec.train.optimizer.lr == 0.01),
            ("train.optimizer.lr = 2", lambda spec: spec.train.optimizer.lr == 2.0),
            ("train.steps=7", lambda spec: spec.train.steps == 7),
            ("model.args.conv_widths=[3, 5]", lambda spec: spec.model.args.conv_widths == (3, 5)),
            ("model.args.batch_norm=true", lambda spec: spec.model.args.batch_norm is True),
            ("train.schedule=cosine", lambda spec: spec.train.schedule == Cosine(name="cosine")),
            (
                "train.schedule={name: cosine, floor: 0.1}",
                lambda spec: spec.train.schedule == Cosine(name="cosine", floor=0.1),
            ),
            ("data.augment=[horizontal_flip]", lambda spec: spec.data.augment[0].step == HorizontalFlip()),
            (
                "compress.prune.recover.distill.weight=0.4",
                lambda spec: spec.compress.prune.recover.distill.weight == 0.4,
            ),
            ("compress.prune.recover.epochs=3", lambda spec: spec.compress.prune.recover == Recover(epochs=3)),
            ("compress.budget.max_metric_drop=null", lambda spec: spec.compress.budget.max_metric_drop is None),
            ("name=other", lambda spec: spec.name == "other"),
            ('project="12"', lambda spec: spec.project == "12"),
        ],
    )
    def test_values_are_read_as_yaml(self, assignment: str, read: Any, tmp_path: Path) -> None:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(SMALL))
        assert read(JobSpec.load(path, [assignment])), JobSpec.load(path, [assignment]).document()

    def test_a_schedule_written_as_one_word_takes_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(with_values(SMALL, {"train.schedule": "cosine"})))
        assert JobSpec.load(path, ["train.schedule.floor=0.2"]).train.schedule == Cosine(name="cosine", floor=0.2)

    def test_later_ones_win_and_lists_have_indices(self, tmp_path: Path) -> None:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(LARGE))
        spec = JobSpec.load(path, ["train.batch_size=64", "train.batch_size=96", "data.augment.2.rotate.degrees=3"])
        assert spec.train.batch_size == 96
        assert spec.resolved()["data"]["augment"][2]["rotate"] == {"degrees": 3.0}


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 0.001),
            ("1E5", 100000.0),
            ("-2.5e+3", -2500.0),
            (".5", 0.5),
            ("3", 3),
            ("2020-01-01", "2020-01-01"),
            ("1.2.3", "1.2.3"),
            ("e5", "e5"),
            ("'1e-3'", "1e-3"),
            ("true", True),
            ("~", None),
        ],
    )
    def test_scalars(self, text: str, value: Any) -> None:
        read = parse_yaml(f"key: {text}", "test")["key"]
        assert read == value
        assert type(read) is type(value)

    def test_json_is_read_too(self, tmp_path: Path) -> None:
        path = tmp_path / "spec.json"
        for indent in (2, "\t", None):
            path.write_text(json.dumps(LARGE, indent=indent))
            assert JobSpec.load(path) == JobSpec.parse(LARGE)

    def test_an_alias_stands_for_what_it_names(self) -> None:
        assert parse_yaml("a: &x [1, 2]\nb: *x\n", "test") == {"a": [1, 2], "b": [1, 2]}


def test_python_and_yaml_give_the_same() -> None:
    built = JobSpec(
        name="large",
        project="tests",
        priority=-5,
        data=Data(
            source=BuiltinSource(kind="builtin", name="digits"),
            augment=(Augmentation(horizontal_flip=HorizontalFlip(p=0.25)),),
        ),
        metric="accuracy",
        model=LenetModel(name="lenet", args=LenetArgs(conv_widths=(4,), dropout=0.2)),
        train=Train(epochs=3, optimizer=Sgd(name="sgd", lr=0.1)),
        layout=Layout(data=2),
        resources=Resources(workers=2),
        search=Search(trials=2, space={"train.optimizer.lr": Dimension(loguniform=(0.01, 0.1))}),
        compress=Compress(quantize=Quantize(schemes=("fp16",))),
    )
    text = """
        name: large
        project: tests
        priority: -5
        data:
          source: {kind: builtin, name: digits}
          augment: [{horizontal_flip: {p: 0.25}}]
        model: {name: lenet, args: {conv_widths: [4], dropout: 0.2}}
        train: {epochs: 3, optimizer: {name: sgd, lr: 0.1}}
        layout: {data: 2}
        resources: {workers: 2}
        search: {trials: 2, space: {train.optimizer.lr: {loguniform: [1e-2, 1e-1]}}}
        compress: {quantize: {schemes: [fp16]}}
    """
    assert built == JobSpec.parse(parse_yaml(text, "test"))


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
