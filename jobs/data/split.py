"""Dividing samples into training, validation and test: deterministic in the seed, even over the classes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data.order import Ids
from jobs.data.randomness import Purpose, hash_words
from jobs.data.raw import Array
from jobs.errors import DataError
from jobs.spec.data import Split

SPLITS = ("train", "validation", "test")


def split_sizes(num_samples: int, num_test: int | None, split: Split) -> dict[str, int]:
    """How many samples each split gets; `num_test` is the size of the source's own test split, if it has one.

    Raises DataError where a split would be empty, or training has not as many as are asked for.
    """
    validation = int(num_samples * split.validation + 0.5)
    test = int(num_samples * split.test + 0.5) if num_test is None else num_test
    train = num_samples - validation - (test if num_test is None else 0)
    sizes = {"train": train, "validation": validation, "test": test}
    if empty := [name for name, size in sizes.items() if size < 1]:
        asked: dict[str, Any] = {"validation": split.validation, "test": split.test}
        what = f"{num_samples} samples are too few to split: {', '.join(empty)} would be empty"
        raise DataError.at("data.split", what, asked, "at least one sample in each split")
    if split.train is not None:
        if split.train > train:
            raise DataError.at(
                "data.split.train", "more than there are training samples", split.train, f"at most {train}"
            )
        sizes["train"] = split.train
    return sizes


def divide(labels: Array | None, num_samples: int, sizes: dict[str, int], own_test: bool, seed: int) -> dict[str, Ids]:
    """Ascending ids of each split; with the source's own test split, that one is left out.

    Validation and test are the same however many samples training takes of the others.

    With `labels` (int64, one a sample) each class is divided in the same proportions, to within one sample.
    """
    ids = np.arange(num_samples, dtype=np.int64)
    chosen = draw(labels, ids, sizes["validation"], seed, Purpose.SPLIT)
    division = {"validation": ids[chosen]}
    ids = ids[~chosen]
    if not own_test:
        chosen = draw(labels, ids, sizes["test"], seed, Purpose.SPLIT)
        division["test"] = ids[chosen]
        ids = ids[~chosen]
    if sizes["train"] < len(ids):
        ids = ids[draw(labels, ids, sizes["train"], seed, Purpose.SUBSET)]
    return {"train": ids, **division}


def draw(labels: Array | None, ids: Ids, count: int, seed: int, purpose: Purpose) -> npt.NDArray[np.bool_]:
    """A mask over `ids` with exactly `count` of them chosen.

    Systematic sampling (Cochran 1977, chapter 8): the samples in random order, sorted by class, and every
    (len/count)-th of them taken. So each class gives its share, rounded down or up.
    """
    keys = hash_words(seed, purpose, ids)
    order = np.argsort(keys, kind="stable") if labels is None else np.lexsort((keys, labels[ids]))
    start = int(hash_words(seed, purpose, len(ids), count)[0] % np.uint64(len(ids)))
    marks = (np.arange(len(ids) + 1, dtype=np.int64) * count + start) // len(ids)
    mask = np.zeros(len(ids), np.bool_)
    mask[order[np.diff(marks) > 0]] = True
    return mask


def check_classes(labels: dict[str, Array], classes: tuple[str, ...], path: str) -> None:
    """Raises DataError for a class that training never sees."""
    seen = np.bincount(labels["train"], minlength=len(classes)) > 0
    for name in ("validation", "test"):
        unseen = np.flatnonzero((np.bincount(labels[name], minlength=len(classes)) > 0) & ~seen)
        if unseen.size:
            which = f"{unseen.size} of {len(classes)} classes, as {classes[unseen[0]]!r},"
            what = f"{which} occur in the {name} split but not in training"
            raise DataError.at(path, what, None, "every class in the training split (more samples of it, or mse)")
