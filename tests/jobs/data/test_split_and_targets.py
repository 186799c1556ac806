"""Targets become labels, and samples are divided evenly over the classes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.randomness import Purpose
from jobs.data.split import check_classes, divide, draw, split_sizes
from jobs.data.targets import Target, encode_targets
from jobs.errors import DataError
from jobs.spec.data import Split

PINNED_VALIDATION = [8, 23, 28]

quick = settings(deadline=None, max_examples=50)


@quick
@given(
    labels=st.lists(st.integers(0, 4), min_size=20, max_size=200),
    validation=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
def test_splits_are_a_partition_even_over_the_classes(
    labels: list[int], validation: float, test: float, seed: int
) -> None:
    array = np.array(labels)
    sizes = split_sizes(len(array), None, Split(validation=validation, test=test, seed=seed))
    division = divide(array, len(array), sizes, own_test=False, seed=seed)
    assert {name: len(ids) for name, ids in division.items()} == sizes
    assert np.array_equal(np.sort(np.concatenate(list(division.values()))), np.arange(len(array)))
    for label in range(5):
        share = (array == label).sum() * sizes["validation"] / len(array)
        assert abs((array[division["validation"]] == label).sum() - share) < 1 + 1e-9


def test_the_split_is_pinned_and_depends_on_the_seed() -> None:
    def validation(seed: int) -> list[int]:
        sizes = split_sizes(30, None, Split())
        return divide(None, 30, sizes, own_test=False, seed=seed)["validation"].tolist()

    assert validation(0) == PINNED_VALIDATION
    assert len({tuple(validation(seed)) for seed in range(6)}) > 3


def test_a_rare_class_is_not_always_drawn_or_never() -> None:
    """One sample of its class among 20, half of them drawn: the seed decides."""
    labels = np.array([0] * 19 + [1])
    drawn = [bool(draw(labels, np.arange(20), 10, seed, Purpose.SPLIT)[19]) for seed in range(200)]
    assert 70 < sum(drawn) < 130


def test_training_takes_a_share_of_each_class_and_leaves_validation_as_it_is() -> None:
    labels = np.arange(200) % 4
    whole, part = (
        divide(labels, 200, split_sizes(200, 50, split), own_test=True, seed=3)
        for split in (Split(validation=0.2), Split(validation=0.2, train=40))
    )
    assert np.array_equal(whole["validation"], part["validation"])
    assert set(part["train"]) < set(whole["train"])
    assert np.bincount(labels[part["train"]]).tolist() == [10, 10, 10, 10]
    with pytest.raises(DataError, match="more than there are training samples") as caught:
        split_sizes(200, 50, Split(validation=0.2, train=161))
    assert (caught.value.problems[0].path, caught.value.problems[0].allowed) == ("data.split.train", "at most 160")


def test_the_own_test_split_is_kept() -> None:
    assert split_sizes(100, 40, Split(validation=0.2)) == {"train": 80, "validation": 20, "test": 40}


@pytest.mark.parametrize(
    ("num_samples", "split", "empty"),
    [(4, Split(), "validation, test"), (10, Split(validation=0.5, test=0.5), "train"), (9, Split(test=0.01), "test")],
)
def test_too_few_samples(num_samples: int, split: Split, empty: str) -> None:
    with pytest.raises(DataError, match=f"{empty} would be empty") as caught:
        split_sizes(num_samples, None, split)
    assert caught.value.problems[0].path == "data.split"


def test_a_class_that_training_never_sees() -> None:
    labels = {"train": np.array([0, 1]), "validation": np.array([0, 2]), "test": np.array([1])}
    with pytest.raises(DataError, match="1 of 3 classes, as 'bird', occur in the validation split but not in training"):
        check_classes(labels, ("cat", "dog", "bird"), "data.target")


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        (np.array([3, 7, 3]), ("3", "7"), [0, 1, 0]),
        (np.array([10, 9, 10]), ("9", "10"), [1, 0, 1]),
        (np.array([1.0, 0.0]), ("0", "1"), [1, 0]),
        (np.array([True, False]), ("false", "true"), [1, 0]),
        (np.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
    ],
)
def test_classes_are_sorted_as_what_they_are(values: Any, classes: tuple[str, ...], labels: list[int]) -> None:
    encoded = encode_targets(Target(values), None, "cross_entropy")
    assert encoded.classes == classes
    assert encoded.train.tolist() == labels
    assert encoded.train.dtype == np.int64


def test_train_and_test_share_their_classes() -> None:
    encoded = encode_targets(Target(np.array(["x", "z"])), Target(np.array(["y"])), "cross_entropy")
    assert encoded.classes == ("x", "y", "z")
    assert encoded.test is not None
    assert encoded.test.tolist() == [1]


def test_regression_targets_are_not_scaled() -> None:
    encoded = encode_targets(Target(np.array([1000, -3])), None, "mse")
    assert (encoded.classes, encoded.train.tolist(), encoded.train.dtype) == ((), [1000.0, -3.0], np.float32)


@pytest.mark.parametrize(
    ("target", "loss", "path", "message"),
    [
        (Target(np.array([1.0, np.nan, np.nan])), "mse", "data.source.path", "2 of 3 targets .* first in row 2"),
        (Target(np.array([1.0, np.inf])), "cross_entropy", "data.source.path", "1 of 2 targets"),
        (Target(np.array([5, 5])), "cross_entropy", "data.source.path", "all targets are '5'"),
        (Target(np.array([1, 2, 3])), "bce", "train.loss", "bce predicts 2 classes, and the data have 3"),
        (Target(np.array([0.5, 1.5])), "cross_entropy", "train.loss", "continuous"),
        (Target(np.array([1, 2]), continuous=True), "cross_entropy", "train.loss", "continuous"),
        (Target(np.array(["a", "b"]), path="data.target"), "mse", "data.target", r"is text \('a', …\)"),
        (Target(np.array([0, 1]), ("cat", "dog")), "mse", "train.loss", "classes"),
        (Target(np.array([1e300])), "mse", "data.source.path", "beyond the range of float32"),
    ],
)
def test_targets_that_the_loss_cannot_use(target: Target, loss: str, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode_targets(target, None, loss)
    assert caught.value.problems[0].path == path
