"""`data:` where the samples come from, how they are split, normalized and augmented."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.section import Section, illegal, not_supported_yet

BUILTIN_NAMES = ("digits", "breast_cancer", "diabetes")


class BuiltinSource(Section):
    """A small real data set that scikit-learn ships."""

    kind: Literal["builtin"]
    name: Literal["digits", "breast_cancer", "diabetes"]


class IdxSource(Section):
    """A folder in MNIST's IDX format, plain or `.gz`: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-…"""

    kind: Literal["idx"]
    path: str = Field(min_length=1)


class CifarSource(Section):
    """CIFAR-10 or CIFAR-100, as the binary or the Python release lays them out (a folder)."""

    kind: Literal["cifar"]
    path: str = Field(min_length=1)


class CsvSource(Section):
    """A CSV file with a header line."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    missing: tuple[str, ...] = ("", "NA", "NaN", "nan", "null", "?")
    categorical: tuple[str, ...] = ()
    """Columns to read as categories although they look like numbers (a zip code)."""
    ignore: tuple[str, ...] = ()
    """Columns that are no features (a customer's number)."""


class ParquetSource(Section):
    """A Parquet file, or a folder of them."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1)
    categorical: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class NpzSource(Section):
    """A NumPy archive: arrays `x` (samples first) and `y`, or `x_train`, `y_train`, `x_test`, `y_test`."""

    kind: Literal["npz"]
    path: str = Field(min_length=1)


class ImageFolderSource(Section):
    """A folder with one sub-folder of images a class; or `train/` and `test/` folders of such."""

    kind: Literal["image_folder"]
    path: str = Field(min_length=1)
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] | None = None
    """Height and width that every image is resized to; without it, all images must have one size."""
    channels: Literal[1, 3] = 3


class TextSource(Section):
    """Plain text, JSON lines or a CSV column."""

    kind: Literal["text"]
    path: str = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse(self) -> "TextSource":
        raise not_supported_yet("text sources", at="kind")


Source = Annotated[
    BuiltinSource | IdxSource | CifarSource | CsvSource | ParquetSource | NpzSource | ImageFolderSource | TextSource,
    Field(discriminator="kind"),
]
TABLE_KINDS = ("csv", "parquet")


class Split(Section):
    """How the samples are divided. A source with its own test split keeps it, and `test` is then not used."""

    validation: float = Field(default=0.1, gt=0.0, le=0.5)
    test: float = Field(default=0.1, gt=0.0, le=0.5)
    calibration: int = Field(default=512, ge=16, le=100_000)
    """Samples, drawn from the training split, that quantization is calibrated with."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class RandomCrop(Section):
    """Pads with zeros (raw pixels) on every side, then cuts the original size out at a random place."""

    padding: int = Field(ge=1, le=64)


class HorizontalFlip(Section):
    p: float = Field(default=0.5, gt=0.0, le=1.0)


class Rotate(Section):
    """Rotates by a uniformly random angle in [-degrees, degrees], bilinear."""

    degrees: float = Field(gt=0.0, le=180.0)


class Augmentation(Section):
    """One step: exactly one of the keys is set."""

    random_crop: RandomCrop | None = None
    horizontal_flip: HorizontalFlip | None = None
    rotate: Rotate | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Augmentation":
        if sum(value is not None for _, value in self) != 1:
            raise illegal(
                "an augmentation step names exactly one method",
                ", ".join(type(self).model_fields),
            )
        return self

    @property
    def step(self) -> RandomCrop | HorizontalFlip | Rotate | None:
        return self.random_crop or self.horizontal_flip or self.rotate


class Data(Section):
    source: Source
    target: str | None = Field(default=None, min_length=1)
    """The column to predict, where the kind has columns."""
    split: Split = Split()
    normalize: Literal["none", "unit", "standardize"] = "standardize"
    """none: as stored; unit: to 0…1; standardize: mean 0, deviation 1, from the training split's statistics."""
    augment: tuple[Augmentation, ...] = ()

    @field_validator(
        "augment", mode="before", json_schema_input_type=tuple[Augmentation | Literal["horizontal_flip"], ...]
    )
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """`horizontal_flip` alone stands for `{horizontal_flip: {}}`, so that the defaults are one word away."""
        if isinstance(value, list | tuple):
            return [{step: {}} if isinstance(step, str) else step for step in value]
        return value

    @model_validator(mode="after")
    def _target_where_columns(self) -> "Data":
        if self.source.kind in TABLE_KINDS and self.target is None:
            raise illegal(f"a {self.source.kind} source needs `data.target`, the column to predict", at="target")
        if self.source.kind not in TABLE_KINDS and self.target is not None:
            raise illegal(
                f"a {self.source.kind} source has no columns, so `data.target` must be left out", "null", at="target"
            )
        return self
