"""Samples of text: documents with a target, or chunks of one long text that a language model learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.data.order import Ids
from jobs.data.raw import Array
from jobs.data.sources.source import check_size
from jobs.data.split import SPLITS
from jobs.data.statistics import TextStatistics
from jobs.data.text.tokens import Codes, TextTokenizer, fit_to
from jobs.errors import DataError
from jobs.spec.data import Split, TextSource

DEFAULT_CHUNK = 128
MULTIPLE = 8
"""Vocabularies are rounded up to it, so that tensor parallelism divides them."""
_LENGTH = "data.source.length"


@dataclass(frozen=True)
class Corpus:
    """Text to learn as such.

    Attributes:
        documents: in their order; plain text is one.
        separated: whether a token of its own ends each document.
        name: of the file.
    """

    documents: tuple[str, ...]
    separated: bool
    name: str


@dataclass(frozen=True)
class Chunks:
    """Consecutive pieces of a stretch of text.

    Attributes:
        x: int32 (chunks, length).
        following: int32 (chunks,): the code that comes after each chunk, the last one it predicts.
    """

    x: Codes
    following: npt.NDArray[np.int32]


def next_codes(x: Array, following: Array) -> npt.NDArray[np.int64]:
    """What a language model is to predict at each step of chunks: (chunks, length)."""
    return np.concatenate([x[:, 1:], following[:, None]], axis=1).astype(np.int64)


def tokenize_documents(texts: tuple[str, ...], train: Ids, source: TextSource) -> tuple[Codes, TextStatistics]:
    """Codes of all texts, (texts, steps), by a tokenizer that knows those in `train` alone.

    Raises DataError for a text that is empty, or longer than `source.length`.
    """
    tokenizer = _tokenizer(source, [texts[position] for position in train], reserved=1)
    codes = tokenizer.encode(texts, special=True)
    steps = source.length or max(1, max(len(sample) for sample in codes))
    check_size(len(codes) * steps * np.int32().itemsize, f"{len(codes)} texts, padded to {steps} tokens,", _LENGTH)
    rows = fit_to(codes, steps, truncate=source.truncate, name=Path(source.path).name, where=_LENGTH)
    # One that was loaded keeps its size, for the embeddings of the model that it came with.
    vocabulary = tokenizer.num_codes if source.tokenizer.file else _rounded(tokenizer.num_codes)
    return rows, _statistics(tokenizer, source, steps, vocabulary)


def tokenize_corpus(corpus: Corpus, source: TextSource, split: Split) -> tuple[dict[str, Chunks], TextStatistics]:
    """The chunks of each split, by a tokenizer that knows the training stretch alone.

    The text is divided into three consecutive stretches, the last two of them for validation and test, and each is
    cut into chunks of `length` tokens from its own beginning: no split sees a token of another one, not even as
    context or as the last one to predict. Lines are tokenized one by one. Raises DataError for a stretch that holds
    no whole chunk.
    """
    stretches = divide_corpus(corpus, split)
    lines = {name: [_lines(document) for document in stretches[name]] for name in SPLITS}
    tokenizer = _tokenizer(source, [line for document in lines["train"] for line in document], 1 + corpus.separated)
    num_codes = tokenizer.num_codes + corpus.separated
    separator = num_codes - 1 if corpus.separated else None
    length = source.length or DEFAULT_CHUNK
    chunks = {}
    for name, documents in lines.items():
        codes = _stretch(tokenizer, documents, separator)
        if len(codes) <= length:
            what = f"the {name} split of {corpus.name} has {len(codes)} tokens, and a chunk needs {length} and a next"
            allowed = f"at most {len(codes) - 1}" if len(codes) > 1 else "more text"
            raise DataError.at(_LENGTH, what, length, f"{allowed}, or a larger share of the text")
        chunks[name] = cut(codes, length)
    return chunks, _statistics(tokenizer, source, length, _rounded(num_codes), separator=separator, prompts=True)


def cut(codes: Codes, length: int) -> Chunks:
    """As many whole chunks as have a next code; what is left at the end is left out."""
    count = (len(codes) - 1) // length
    return Chunks(codes[: count * length].reshape(count, length), codes[length : count * length + 1 : length])


def divide_corpus(corpus: Corpus, split: Split) -> dict[str, tuple[str, ...]]:
    """The documents of each split, by shares of all characters: between documents, or within plain text.

    Raises DataError where a split would be empty.
    """
    documents = corpus.documents
    ends = np.cumsum([len(document) for document in documents])
    total = int(ends[-1])
    places = [int(total * (1.0 - share) + 0.5) for share in (split.validation + split.test, split.test)]
    if corpus.separated:
        first, second = (int(np.argmin(np.abs(ends - place))) + 1 for place in places)
        parts = documents[:first], documents[first:second], documents[second:]
    else:
        first, second = places
        text = documents[0]
        parts = (text[:first],), (text[first:second],), (text[second:],)
    for name, part in zip(SPLITS, parts, strict=True):
        if not any(part):
            asked = {"validation": split.validation, "test": split.test}
            what = f"{corpus.name} is too short to split: {name} would be empty"
            raise DataError.at("data.split", what, asked, "some text in each split")
    return dict(zip(SPLITS, parts, strict=True))


def _tokenizer(source: TextSource, texts: Sequence[str], reserved: int) -> TextTokenizer:
    if source.tokenizer.file is not None:
        return TextTokenizer.loaded(Path(source.tokenizer.file).expanduser())
    return TextTokenizer.trained(source.tokenizer, texts, reserved)


def _lines(document: str) -> list[str]:
    """Its lines with their ends; together they are the document."""
    lines = document.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])


def _stretch(tokenizer: TextTokenizer, documents: list[list[str]], separator: int | None) -> Codes:
    """All codes of some documents, one after the other, each with the separator after it."""
    codes = iter(tokenizer.encode([line for document in documents for line in document], special=False))
    end = np.array([] if separator is None else [separator], np.int32)
    parts = [part for document in documents for part in (*islice(codes, len(document)), end)]
    return np.concatenate(parts)


def _rounded(num_codes: int) -> int:
    return -(-num_codes // MULTIPLE) * MULTIPLE


def _statistics(
    tokenizer: TextTokenizer,
    source: TextSource,
    steps: int,
    vocabulary: int,
    *,
    separator: int | None = None,
    prompts: bool = False,
) -> TextStatistics:
    return TextStatistics(
        steps=steps,
        vocabulary=vocabulary,
        tokenizer=tokenizer.to_json(),
        shift=tokenizer.shift,
        separator=separator,
        column=source.column or "text",
        truncate=source.truncate,
        prompts=prompts,
    )
