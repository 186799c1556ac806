"""From a source's contents to what is stored: splits, statistics of the training split, calibration samples."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from jobs.data.encodings import make_encoding
from jobs.data.identity import fingerprint
from jobs.data.order import Ids
from jobs.data.randomness import Purpose
from jobs.data.raw import Array, Columns, Raw, Sequences, take
from jobs.data.sources import Contents, open_source
from jobs.data.sources.source import PATH, ColumnNames
from jobs.data.split import check_classes, divide, draw, split_sizes
from jobs.data.statistics import (
    CodesStatistics,
    Statistics,
    TableStatistics,
    TokensStatistics,
    bin_column,
    describe_column,
    describe_images,
    describe_sequences,
    restrict_categories,
)
from jobs.data.targets import encode_targets
from jobs.data.text.samples import Corpus, tokenize_corpus, tokenize_documents
from jobs.errors import DataError
from jobs.records import DatasetInfo
from jobs.spec.data import Data, Split, TextSource


@dataclass(frozen=True)
class Assembly:
    """A data set in memory, ready to be written."""

    info: DatasetInfo
    statistics: Statistics
    raw: dict[str, Raw]
    """Samples of each split, ids ascending from 0 in the source's order."""
    targets: dict[str, Array]
    """int64 labels or float32 values of each split; of a language model's chunks, int32, the code after each."""
    calibration_ids: Ids
    """Ascending, into the training split."""


def read(data: Data, loss: str) -> Assembly:
    """Reads the source and assembles it; raises DataError as both do.

    Text is tokenized once for all calls that follow each other, as those of a plan and of its run do.
    """
    if isinstance(data.source, TextSource):
        return _read_text(data, loss, fingerprint(data, loss))
    return assemble(data, loss, open_source(data).read())


@lru_cache(maxsize=1)
def _read_text(data: Data, loss: str, identity: str) -> Assembly:
    """
    Args:
        identity: of the content, so that what has changed since is read again.
    """
    return assemble(data, loss, open_source(data).read())


def forget() -> None:
    """Lets go of text that `read` has kept."""
    _read_text.cache_clear()


def assemble(data: Data, loss: str, contents: Contents | Corpus) -> Assembly:
    """Splits, describes and recodes. Raises DataError for whatever training could not use."""
    if isinstance(contents, Corpus):
        return _assemble_corpus(data, contents)
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

    samples, statistics = _describe(contents, division["train"], data)
    raw = {name: take(samples, ids) for name, ids in division.items()}
    if contents.test is not None:
        assert not isinstance(contents.test.x, tuple)  # text comes without a test split of its own
        raw["test"] = contents.test.x
    info = make_info(statistics, loss, labels.classes, sizes)
    calibration = _draw_calibration(targets["train"] if labels.classes else None, sizes["train"], data.split)
    return Assembly(info, statistics, raw, targets, calibration)


def _assemble_corpus(data: Data, corpus: Corpus) -> Assembly:
    assert isinstance(data.source, TextSource)
    chunks, statistics = tokenize_corpus(corpus, data.source, data.split)
    sizes = {name: len(part.x) for name, part in chunks.items()}
    encoding = make_encoding(statistics, "none")
    info = DatasetInfo(
        task="language_model",
        kind=encoding.signature_kind,
        input_shape=encoding.input_shape,
        outputs=statistics.vocabulary,
        num_codes=encoding.num_codes,
        per_step=True,
        num_samples=sizes,
    )
    raw: dict[str, Raw] = {name: part.x for name, part in chunks.items()}
    targets: dict[str, Array] = {name: part.following for name, part in chunks.items()}
    return Assembly(info, statistics, raw, targets, _draw_calibration(None, sizes["train"], data.split))


def make_info(statistics: Statistics, loss: str, classes: tuple[str, ...], sizes: dict[str, int]) -> DatasetInfo:
    """Of samples that have a target each."""
    encoding = make_encoding(statistics, "none")
    return outline_info(encoding.signature_kind, encoding.input_shape, loss, classes, sizes, encoding.num_codes)


def outline_info(
    kind: Literal["vector", "image", "sequence", "tokens", "codes"],
    shape: tuple[int, ...],
    loss: str,
    classes: tuple[str, ...],
    sizes: dict[str, int],
    num_codes: tuple[int, ...] = (),
) -> DatasetInfo:
    return DatasetInfo(
        task="regression" if loss == "mse" else "classification",
        kind=kind,
        input_shape=shape,
        outputs=len(classes) if loss == "cross_entropy" else 1,
        num_codes=num_codes,
        num_samples=sizes,
        classes=classes,
    )


def _describe(contents: Contents, train: Ids, data: Data) -> tuple[Raw, Statistics]:
    """The samples outside of the source's own test split, recoded, and the statistics of those in `train`."""
    samples = contents.train.x
    if isinstance(samples, tuple):
        assert isinstance(data.source, TextSource)
        return tokenize_documents(samples, train, data.source)
    if isinstance(samples, Columns):
        return _describe_rows(samples, contents, train, codes=data.categories == "codes")
    if isinstance(samples, Sequences):
        return samples, describe_sequences(samples.take(train))
    if contents.vocabulary is not None:
        return samples, TokensStatistics(steps=samples.shape[1], vocabulary=contents.vocabulary)
    return samples, describe_images(samples[train], contents.max_value, contents.resize)


def _describe_rows(
    samples: Columns, contents: Contents, train: Ids, *, codes: bool
) -> tuple[Columns, TableStatistics | CodesStatistics]:
    assert contents.columns is not None
    names = contents.columns
    samples, categorical = restrict_categories(samples, names.categorical, names.vocabularies, train)
    values = samples.numeric[train]
    _check_numeric(values, names)
    written = {"delimiter": contents.delimiter, "missing": contents.missing, "columns": contents.header}
    if codes:
        bins = tuple(bin_column(name, values[:, place]) for place, name in enumerate(names.numeric))
        return samples, CodesStatistics(numeric=bins, categorical=categorical, **written)
    numeric = tuple(describe_column(name, values[:, place]) for place, name in enumerate(names.numeric))
    return samples, TableStatistics(numeric=numeric, categorical=categorical, **written)


def _check_numeric(values: Array, names: ColumnNames) -> None:
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if empty.size:
        what = f"the column {names.numeric[empty[0]]!r} has no values in the training split"
        raise DataError.at(PATH, what, None, "at least one value, or ignore the column")


def _draw_calibration(labels: Array | None, num_samples: int, split: Split) -> Ids:
    """`split.calibration` training samples, or all of them where there are fewer; evenly over labels."""
    ids = np.arange(num_samples, dtype=np.int64)
    count = min(split.calibration, num_samples)
    return ids[draw(labels, ids, count, split.seed, Purpose.CALIBRATION)]
