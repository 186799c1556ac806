"""`data:` where the samples come from, how they are split, normalized and augmented."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.section import Section, illegal

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
    """A CSV file with a header line, or with `columns` in its place."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names for the columns of a file without a header line."""
    delimiter: str = Field(default=",", min_length=1, max_length=2)
    """One or two characters (MovieLens has "::"); with two, quotes have no meaning."""
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
    """A NumPy archive: arrays `x` (samples first) and `y`, or `x_train`, `y_train`, `x_test`, `y_test`.

    With `lengths` (or `lengths_train`, `lengths_test`), the samples are sequences: of numbers where `x` is
    (n, steps, features), of tokens where it is integers (n, steps). What is beyond a sample's length is padding.
    """

    kind: Literal["npz"]
    path: str = Field(min_length=1)


class ImageFolderSource(Section):
    """A folder with one sub-folder of images a class; or `train/` and `test/` folders of such."""

    kind: Literal["image_folder"]
    path: str = Field(min_length=1)
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] | None = None
    """Height and width that every image is resized to; without it, all images must have one size."""
    channels: Literal[1, 3] = 3


MIN_BPE_CODES = 258
"""All bytes, the padding, and the end of a document."""


class Tokenizer(Section):
    """How text becomes tokens: trained on the training split's text alone, or loaded from `file`."""

    file: str | None = Field(default=None, min_length=1)
    """A tokenizer.json of Hugging Face's tokenizers, as it comes with a pretrained model."""
    kind: Literal["bpe", "word", "byte", "char"] | None = Field(
        default_factory=lambda tokenizer: "bpe" if tokenizer.get("file") is None else None
    )
    """bpe: byte pairs (Sennrich et al. 2016); word: the most frequent words; byte; char: the characters there are."""
    vocab_size: int | None = Field(
        default_factory=lambda tokenizer: 2048 if tokenizer.get("kind") in ("bpe", "word") else None,
        ge=4,
        le=1_000_000,
    )
    """Codes at most, with those for padding and the end of a document; for bpe and word 2048, unless given."""

    @model_validator(mode="after")
    def _consistent(self) -> "Tokenizer":
        if self.file is not None and self.kind is not None:
            raise illegal("a tokenizer is trained or loaded, not both: kind and file exclude each other", at="kind")
        if self.file is None and self.kind is None:
            raise illegal("a tokenizer needs a kind to train, or a file to load", "bpe, word, byte, char", at="kind")
        if self.vocab_size is not None and self.kind in (None, "byte"):
            what = "a tokenizer that is loaded" if self.kind is None else "a byte tokenizer"
            raise illegal(f"{what} has the size that it has", "null", at="vocab_size")
        if self.kind == "bpe" and self.vocab_size is not None and self.vocab_size < MIN_BPE_CODES:
            raise illegal(
                "a bpe tokenizer knows all bytes, so that it can spell any text",
                f"at least {MIN_BPE_CODES}",
                at="vocab_size",
            )
        return self


TEXT_SUFFIXES = (".txt", ".jsonl", ".csv")


class TextSource(Section):
    """Text in UTF-8: plain (.txt), a JSON object a line (.jsonl), or a column of a table (.csv).

    With `data.target`, each document is a sample that has a label or a value. Without one, the text itself is
    learnt: a language model.
    """

    kind: Literal["text"]
    path: str = Field(min_length=1)
    column: str | None = Field(
        default_factory=lambda source: None if _suffix(source.get("path", "")) == ".txt" else "text", min_length=1
    )
    """The key or column that holds the text; plain text has none. Default: text."""
    length: int | None = Field(default=None, ge=1, le=1_000_000)
    """Tokens of a sample. Default: those of the longest text; for a language model 128."""
    truncate: bool = False
    """Whether a text longer than `length` loses its end, instead of being refused."""
    tokenizer: Tokenizer = Tokenizer()

    @model_validator(mode="after")
    def _consistent(self) -> "TextSource":
        suffix = _suffix(self.path)
        if suffix not in TEXT_SUFFIXES:
            raise illegal("what kind of text it is can't be told from its name", ", ".join(TEXT_SUFFIXES), at="path")
        if suffix == ".txt" and self.column is not None:
            raise illegal("plain text has no columns", "null", at="column")
        if suffix != ".txt" and self.column is None:
            raise illegal(f"the text of a {suffix} file is in a column", "the column's name", at="column")
        return self

    @property
    def suffix(self) -> str:
        """.txt, .jsonl or .csv."""
        return _suffix(self.path)


def _suffix(path: str) -> str:
    return PurePath(path).suffix.lower()


Source = Annotated[
    BuiltinSource | IdxSource | CifarSource | CsvSource | ParquetSource | NpzSource | ImageFolderSource | TextSource,
    Field(discriminator="kind"),
]
TABLE_KINDS = ("csv", "parquet")


class Split(Section):
    """How the samples are divided. A source with its own test split keeps it, and `test` is then not used."""

    validation: float = Field(default=0.1, gt=0.0, le=0.5)
    test: float = Field(default=0.1, gt=0.0, le=0.5)
    train: int | None = Field(default=None, ge=1, le=2**40)
    """Samples of the training split that are used, drawn evenly over the classes. Default: all of them."""
    calibration: int = Field(default=512, ge=16, le=100_000)
    """Samples, drawn from the training split, that quantization is calibrated with. Default: 512, or all there are."""
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
    """The column to predict, where the kind has columns; text without one makes a language model."""
    categories: Literal["one_hot", "codes"] = "one_hot"
    """What the columns of a table become: one_hot: numbers, and a feature a category; codes: an integer each, which
    a recommender looks up in a table. Default: codes for model recommender, else one_hot."""
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
        kind = self.source.kind
        if kind in TABLE_KINDS and self.target is None:
            raise illegal(f"a {kind} source needs `data.target`, the column to predict", at="target")
        if kind not in (*TABLE_KINDS, "text") and self.target is not None:
            raise illegal(f"a {kind} source has no columns, so `data.target` must be left out", "null", at="target")
        if isinstance(self.source, TextSource):
            self._check_text(self.source)
        return self

    def _check_text(self, source: TextSource) -> None:
        if source.suffix == ".txt" and self.target is not None:
            raise illegal("plain text has no columns, so `data.target` must be left out", "null", at="target")
        if self.target is not None and self.target == source.column:
            raise illegal("the text itself can't be what is predicted from it", "another column", at="target")
        if self.target is None and source.truncate:
            what = "a language model's text is cut into chunks of `length`, so there is nothing to truncate"
            raise illegal(what, "false", at="source.truncate")
        if self.target is None and self.split.train is not None:
            what = "a language model's text is cut into chunks after it was divided, so there are no samples to draw"
            raise illegal(what, "null", at="split.train")

    @property
    def of_language(self) -> bool:
        """Whether a language model is what these data train: text, and nothing else to predict."""
        return isinstance(self.source, TextSource) and self.target is None
