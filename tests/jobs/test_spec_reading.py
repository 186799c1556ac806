"""A spec from YAML, from JSON, from Python and from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.spec import JobSpec
from jobs.spec.compress import Compress, Quantize, Recover
from jobs.spec.data import Augmentation, BuiltinSource, Data, HorizontalFlip
from jobs.spec.load import with_values
from jobs.spec.model import LenetArgs, LenetModel
from jobs.spec.read import parse_yaml
from jobs.spec.search import Dimension, Search
from jobs.spec.train import Cosine, Layout, Resources, Sgd, Train
from tests.jobs.small_specs import LARGE, SMALL


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
