"""From raw samples to what the model takes. An encoding travels in the artifact card: prediction needs no dataset."""

from abc import abstractmethod
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from jobs.data.raw import Array, Columns, Raw
from jobs.data.statistics import ImageStatistics, TableStatistics
from jobs.errors import ArtifactError
from jobs.section import Record

Encoded = npt.NDArray[np.float32]


class Encoding(Record):
    """How raw samples become the float32 input of a model: ImageEncoding or TableEncoding.

    encoding = Encoding.from_json(card["encoding"])
    x = encoding.encode(raw)    # float32 (samples, *encoding.input_shape)
    """

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one encoded sample."""

    @abstractmethod
    def encode(self, raw: Raw) -> Encoded:
        """Encodes raw samples: float32 (samples, *input_shape). A sample's result depends on that sample alone."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Reads what to_json wrote. Raises ArtifactError for anything else."""
        kinds: dict[Any, type[Encoding]] = {"image": ImageEncoding, "table": TableEncoding}
        kind = kinds.get(document.get("kind"))
        if kind is None or not issubclass(kind, cls):
            raise ArtifactError(f"no encoding of kind {document.get('kind')!r}; known: {', '.join(kinds)}")
        try:
            encoding = kind.model_validate(document)
        except ValidationError as error:
            raise ArtifactError(f"the encoding is damaged: {error.errors()[0]['msg']}") from error
        assert isinstance(encoding, cls)
        return encoding


class ImageEncoding(Encoding):
    """(pixel * scale - mean) / std, channel by channel."""

    kind: Literal["image"] = "image"
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    dtype: Literal["uint8", "float32"]
    """Of raw pixels."""
    max_value: float
    """The raw pixel that counts as white."""
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, raw: Raw) -> Encoded:
        assert not isinstance(raw, Columns)
        std = np.array(self.std)
        gain = (self.scale / std).astype(np.float32)[:, None, None]
        bias = (-np.array(self.mean) / std).astype(np.float32)[:, None, None]
        x: Encoded = np.multiply(raw, gain, dtype=np.float32)
        x += bias
        return x


class NumericFeature(Record):
    """(value - shift) / divisor, with `fill` for a missing value, and a feature that says it was missing."""

    name: str
    fill: float
    shift: float
    divisor: float
    indicator: bool


class CategoricalFeature(Record):
    """One feature a category, and a last one for values that are missing or none of them."""

    name: str
    categories: tuple[str, ...]


class TableEncoding(Encoding):
    """Features in order: the numeric columns, their missing-value indicators, then each categorical column one-hot."""

    kind: Literal["table"] = "table"
    numeric: tuple[NumericFeature, ...]
    categorical: tuple[CategoricalFeature, ...]
    delimiter: str = ","
    missing: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        num_indicators = sum(feature.indicator for feature in self.numeric)
        num_slots = sum(len(feature.categories) + 1 for feature in self.categorical)
        return (len(self.numeric) + num_indicators + num_slots,)

    @property
    def column_names(self) -> list[str]:
        """Numeric, then categorical columns, in the order of Columns."""
        return [feature.name for feature in self.numeric] + [feature.name for feature in self.categorical]

    def encode(self, raw: Raw) -> Encoded:
        assert isinstance(raw, Columns)
        x = np.zeros((len(raw), *self.input_shape), np.float32)
        end = self._encode_numeric(raw.numeric, x)
        rows = np.arange(len(raw))
        for position, feature in enumerate(self.categorical):
            unknown = len(feature.categories)
            codes = raw.categorical[:, position]
            x[rows, end + np.where(codes < 0, unknown, codes)] = 1.0
            end += unknown + 1
        return x

    def _encode_numeric(self, values: Array, x: Encoded) -> int:
        """Fills the numeric features and indicators; returns the number of the next feature."""
        count = len(self.numeric)
        if not count:
            return 0
        fill, shift, divisor = np.array([(f.fill, f.shift, f.divisor) for f in self.numeric]).T
        absent = np.isnan(values)
        x[:, :count] = (np.where(absent, fill, values) - shift) / divisor
        indicators = [position for position, feature in enumerate(self.numeric) if feature.indicator]
        x[:, count : count + len(indicators)] = absent[:, indicators]
        return count + len(indicators)


def make_encoding(statistics: ImageStatistics | TableStatistics, normalize: str) -> Encoding:
    """The encoding that `data.normalize` (none, unit, standardize) asks for."""
    if isinstance(statistics, ImageStatistics):
        return _image_encoding(statistics, normalize)
    return TableEncoding(
        numeric=tuple(
            NumericFeature(
                name=column.name,
                fill=column.mean,
                shift={"none": 0.0, "unit": column.min, "standardize": column.mean}[normalize],
                divisor={"none": 1.0, "unit": column.max - column.min, "standardize": column.std}[normalize] or 1.0,
                indicator=column.num_missing > 0,
            )
            for column in statistics.numeric
        ),
        categorical=tuple(
            CategoricalFeature(name=column.name, categories=column.categories) for column in statistics.categorical
        ),
        delimiter=statistics.delimiter,
        missing=statistics.missing,
    )


def _image_encoding(statistics: ImageStatistics, normalize: str) -> ImageEncoding:
    standardize = normalize == "standardize"
    channels = statistics.shape[0]
    return ImageEncoding(
        shape=statistics.shape,
        dtype=statistics.dtype,
        max_value=statistics.max_value,
        scale=1.0 if normalize == "none" else 1.0 / statistics.max_value,
        mean=statistics.mean if standardize else (0.0,) * channels,
        std=tuple(std or 1.0 for std in statistics.std) if standardize else (1.0,) * channels,
        resize=statistics.resize,
    )
