"""Specs that their data contradict are refused when they are planned."""

from pathlib import Path

import pytest

from jobs.errors import SpecError
from jobs.spec import JobSpec
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage
from tests.jobs.refusals.refused import Cases, check, space, spec_with

PLANS: Cases = {
    "a batch that workers can't divide": (
        {"train.batch_size": 33, "resources.workers": 2, "layout": {"data": 2}},
        "train.batch_size",
        ("33", "2 data-parallel workers", "a multiple of 2"),
    ),
    "a batch smaller than the workers": (
        {"train.batch_size": 2, "resources.workers": 4, "layout": {"data": 4}},
        "train.batch_size",
        ("a multiple of 4",),
    ),
    "a batch that no layout of the workers divides": (
        {"train.batch_size": 33, "resources.workers": 64},
        "train.batch_size",
        ("33", "64 data-parallel workers", "a multiple of 64"),
    ),
    "a tensor degree that divides no width": (
        {"resources.workers": 7, "layout": {"tensor": 7}},
        "layout.tensor",
        ("got 7", "greatest common divisor is 120", "1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60"),
    ),
    "more stages than blocks": (
        {"resources.workers": 6, "layout": {"pipeline": 6}},
        "layout.pipeline",
        ("got 6", "the model has 5", "1 to 5"),
    ),
    "searched widths that the tensor degree does not divide": (
        {"model": {"name": "resnet", "args": {"depth": 8}}, "layout": {"tensor": 16}, "resources.workers": 16}
        | space("model.args.width", {"choice": [16, 24]}),
        "search.space.model.args.width",
        ("got 24", "layout.tensor", "1, 2, 3, 4, 6, 8, 12, 24"),
    ),
    "a share that micro-batches can't divide": (
        {"train.batch_size": 64, "resources.workers": 2, "layout": {"data": 2, "micro_batch": 5}},
        "layout.micro_batch",
        ("got 5", "a divisor of 32"),
    ),
    "a searched batch that workers can't divide": (
        space("train.batch_size", {"choice": [32, 33]}) | {"resources.workers": 2, "layout": {"data": 2}},
        "search.space.train.batch_size",
        ("got 33", "a multiple of 2"),
    ),
    "searched batches in between": (
        space("train.batch_size", {"int": [32, 64]}) | {"resources.workers": 2, "layout": {"data": 2}},
        "search.space.train.batch_size",
        ("got 33",),
    ),
    "a searched batch that is never full": (
        space("train.batch_size", {"choice": [32, 1_000_000]}),
        "search.space.train.batch_size",
        ("got 1000000", "at most"),
    ),
    "a batch that is never full": (
        {"train": {"batch_size": 10_000, "epochs": 1}},
        "train.batch_size",
        ("no whole batch", "at most 1437"),
    ),
    "weights and classes": (
        {"train.class_weights": [1.0, 2.0]},
        "train.class_weights",
        ("2 weights for 10 classes", "10 weights"),
    ),
    "more calibration than training": (
        {"data.split.calibration": 5000, "compress.quantize": {"schemes": ["int8_static"]}},
        "data.split.calibration",
        ("got 5000", "at most 1437"),
    ),
    "augmented tables": (
        {"data.source.name": "breast_cancer", "model.name": "mlp", "data.augment": [{"rotate": {"degrees": 5}}]},
        "data.augment",
        ("augmentation is for images",),
    ),
    "a crop as wide as the image": (
        {"data.augment": [{"random_crop": {"padding": 8}}]},
        "data.augment.0.random_crop.padding",
        ("got 8", "1 to 7"),
    ),
    "codes of images": (
        {"model": {"name": "recommender"}},
        "data.categories",
        ("images", "one_hot, or a source of tables"),
    ),
    "an image model for tables": (
        {"data.source.name": "breast_cancer"},
        "model.name",
        ("got 'lenet'", "(30,)", "mlp"),
    ),
    "two classes of ten": ({"train.loss": "bce"}, "train.loss", ("got 'bce'", "10", "cross_entropy")),
    "classes of a continuum": (
        {"data.source.name": "diabetes", "model.name": "mlp"},
        "train.loss",
        ("continuous", "mse"),
    ),
    "numbers of classes": (
        {"data.source.name": "breast_cancer", "model.name": "mlp", "train.loss": "mse"},
        "train.loss",
        ("malignant", "cross_entropy"),
    ),
    "modules that are not there": (
        {"model.name": "mine:make", "code.working_dir": "/no/such/folder"},
        "code.working_dir",
        ("no such folder",),
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_spec_that_its_data_contradict_is_refused(case: str, tmp_path: Path) -> None:
    values, path, parts = PLANS[case]
    with pytest.raises(SpecError) as caught:
        plan_job(JobSpec.parse(spec_with(values)), Storage(tmp_path / "runs"))
    check(caught.value, path, parts)
    assert not (tmp_path / "runs").exists()
