"""What comes step by step: sequences of numbers, tokens, text."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from jobs.data.encodings.encoding import Encoding
from jobs.data.encodings.table import divisor_of, shift_of
from jobs.data.raw import Array, Raw, Sequences, present
from jobs.data.statistics import SequenceStatistics, TextStatistics, TokensStatistics
from jobs.data.text.tokens import TextTokenizer, fit_to


class SequenceEncoding(Encoding):
    """(value - shift) / divisor, feature by feature, and a last feature that is 1 where there is a step.

    Beyond the end of a sample all features are 0: a model takes one input, and sees the lengths in it.
    """

    kind: Literal["sequence"] = "sequence"
    steps: int
    shift: tuple[float, ...]
    divisor: tuple[float, ...]

    @model_validator(mode="after")
    def _a_value_for_each_feature(self) -> "SequenceEncoding":
        if len(self.shift) != len(self.divisor):
            raise ValueError("shift and divisor have not one value for each feature")
        return self

    @property
    def signature_kind(self) -> Literal["sequence"]:
        return "sequence"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps, len(self.shift) + 1)

    def encode(self, raw: Raw) -> npt.NDArray[np.float32]:
        assert isinstance(raw, Sequences)
        x = np.zeros((len(raw), *self.input_shape), np.float32)
        there = present(raw.lengths, self.steps)
        x[there, :-1] = (raw.values[there] - np.array(self.shift)) / np.array(self.divisor)
        x[..., -1] = there
        return x


class TokensEncoding(Encoding):
    """Tokens as they are stored: code = token + 1, and 0 beyond the end."""

    kind: Literal["tokens"] = "tokens"
    steps: int
    vocabulary: int
    """Number of codes."""

    @property
    def signature_kind(self) -> Literal["tokens"]:
        return "tokens"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps,)

    @property
    def num_codes(self) -> tuple[int, ...]:
        return (self.vocabulary,)

    def encode(self, raw: Raw) -> npt.NDArray[np.int64]:
        assert isinstance(raw, np.ndarray)
        return raw.astype(np.int64)


class TextEncoding(Encoding):
    """Text by way of its tokenizer. Raw samples are tokenized already: `tokenize` is for those to predict on."""

    kind: Literal["text"] = "text"
    steps: int
    vocabulary: int
    """Number of codes."""
    tokenizer: dict[str, Any]
    """As Hugging Face's tokenizers write it."""
    shift: Literal[0, 1]
    """From the tokenizer's ids to codes: 0 where id 0 is padding anyway."""
    separator: int | None
    """The code that ends a document, in a language model of documents."""
    column: str = "text"
    """Where .jsonl and .csv files hold the text."""
    truncate: bool = False
    prompts: bool = False
    """Whether it serves a language model: then the last `steps` tokens of a text count, and otherwise all must fit."""

    @property
    def signature_kind(self) -> Literal["tokens"]:
        return "tokens"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps,)

    @property
    def num_codes(self) -> tuple[int, ...]:
        return (self.vocabulary,)

    @property
    def last_code(self) -> int:
        """The highest code that can occur; what is left of `vocabulary` is there to make it divisible."""
        return self.text_tokenizer.num_codes - 1 if self.separator is None else self.separator

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """Raises ArtifactError if it is damaged."""
        return TextTokenizer.from_json(self.tokenizer, self.shift)

    def tokenize(self, texts: Sequence[str], name: str, where: str) -> npt.NDArray[np.int32]:
        """Raw samples from texts: (texts, steps). Raises DataError for one that is empty, or longer than `steps`."""
        codes = self.text_tokenizer.encode(texts, special=not self.prompts)
        if self.prompts:
            codes = [sample[-self.steps :] for sample in codes]
        return fit_to(codes, self.steps, truncate=self.truncate, name=name, where=where)

    def continuation(self, codes: Array, code: int) -> str:
        """The text that `code` adds after `codes`; <end> for the end of a document."""
        if code == self.separator:
            return "<end>"
        return self.text_tokenizer.continuation(codes, code)

    def encode(self, raw: Raw) -> npt.NDArray[np.int64]:
        assert isinstance(raw, np.ndarray)
        return raw.astype(np.int64)


def sequence_encoding(statistics: SequenceStatistics, normalize: str) -> SequenceEncoding:
    return SequenceEncoding(
        steps=statistics.steps,
        shift=tuple(shift_of(feature, normalize) for feature in statistics.features),
        divisor=tuple(divisor_of(feature, normalize) for feature in statistics.features),
    )


def tokens_encoding(statistics: TokensStatistics) -> TokensEncoding:
    return TokensEncoding(steps=statistics.steps, vocabulary=statistics.vocabulary)


def text_encoding(statistics: TextStatistics) -> TextEncoding:
    return TextEncoding(**statistics.model_dump())
