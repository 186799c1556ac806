"""From a source's contents to what is stored: splits, statistics of the training split, calibration samples."""

from dataclasses import dataclass

import numpy as np

from jobs.data.encoding import make_encoding
from jobs.data.order import Ids
from jobs.data.randomness import Purpose
from jobs.data.raw import Array, Columns, Raw, take
from jobs.data.sources import Contents
from jobs.data.sources.source import PATH, ColumnNames
from jobs.data.split import check_classes, divide, draw, split_sizes
from jobs.data.statistics import (
    ImageStatistics,
    NumericColumn,
    TableStatistics,
    describe_column,
    describe_images,
    restrict_categories,
)
from jobs.data.targets import encode_targets
from jobs.errors import DataError
from jobs.records import DatasetInfo
from jobs.spec.data import Data, Split


@dataclass(frozen=True)
class Assembly:
    """A data set in memory, ready to be written."""

    info: DatasetInfo
    statistics: ImageStatistics | TableStatistics
    raw: dict[str, Raw]
    """Samples of each split, ids ascending from 0 in the source's order."""
    targets: dict[str, Array]
    """int64 labels or float32 values of each split."""
    calibration_ids: Ids
    """Ascending, into the training split."""


def assemble(data: Data, loss: str, contents: Contents) -> Assembly:
    """Splits, describes and recodes. Raises DataError for whatever training could not use."""
    own_test = contents.test is not None
    labels = encode_targets(contents.train.target, contents.test.target if contents.test else None, loss)
    strata = labels.train if labels.classes else None
    sizes = split_sizes(len(labels.train), len(labels.test) if labels.test is not None else None, data.split)
    division = divide(strata, len(labels.train), sizes, own_test, data.split.seed)

    targets = {name: labels.train[ids] for name, ids in division.items()}
    if labels.test is not None:
        targets["test"] = labels.test
    if labels.classes:
        check_classes(targets, labels.classes, contents.train.target.path)

    samples, statistics = _describe(contents, division["train"])
    raw = {name: take(samples, ids) for name, ids in division.items()}
    if contents.test is not None:
        raw["test"] = contents.test.x
    info = make_info(loss, make_encoding(statistics, "none").input_shape, labels.classes, sizes)
    return Assembly(info, statistics, raw, targets, _draw_calibration(targets["train"], labels.classes, data.split))


def make_info(loss: str, shape: tuple[int, ...], classes: tuple[str, ...], sizes: dict[str, int]) -> DatasetInfo:
    return DatasetInfo(
        task="regression" if loss == "mse" else "classification",
        input_shape=shape,
        outputs=len(classes) if loss == "cross_entropy" else 1,
        num_samples=sizes,
        classes=classes,
        image=len(shape) == 3,
    )


def _describe(contents: Contents, train: Ids) -> tuple[Raw, ImageStatistics | TableStatistics]:
    """The samples outside of the source's own test split, recoded, and the statistics of those in `train`."""
    samples = contents.train.x
    if not isinstance(samples, Columns):
        return samples, describe_images(samples[train], contents.max_value, contents.resize)
    assert contents.columns is not None
    names = contents.columns
    samples, categorical = restrict_categories(samples, names.categorical, names.vocabularies, train)
    numeric = _describe_numeric(samples.numeric[train], names)
    missing = contents.missing
    return samples, TableStatistics(
        numeric=numeric, categorical=categorical, delimiter=contents.delimiter, missing=missing
    )


def _describe_numeric(values: Array, names: ColumnNames) -> tuple[NumericColumn, ...]:
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if empty.size:
        what = f"the column {names.numeric[empty[0]]!r} has no values in the training split"
        raise DataError.at(PATH, what, None, "at least one value, or ignore the column")
    return tuple(describe_column(name, values[:, position]) for position, name in enumerate(names.numeric))


def _draw_calibration(labels: Array, classes: tuple[str, ...], split: Split) -> Ids:
    """`split.calibration` training samples, or all of them where there are fewer."""
    ids = np.arange(len(labels), dtype=np.int64)
    count = min(split.calibration, len(ids))
    return ids[draw(labels if classes else None, ids, count, split.seed, Purpose.CALIBRATION)]
