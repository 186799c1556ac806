"""Tokenizers: Hugging Face's library, trained here or loaded; and what the data set adds to them.

A token's code is its id + 1, so that 0 is padding; a loaded tokenizer whose id 0 is padding already keeps its ids, so
that they stay those of a pretrained model.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from jobs.data.raw import Array, present
from jobs.errors import ArtifactError, DataError
from jobs.spec.data import Tokenizer as TokenizerSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Codes = npt.NDArray[np.int32]

MAX_FILE_BYTES = 1 << 28
_FILE = "data.source.tokenizer.file"
_UNKNOWN = "<unk>"
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<PAD>", "[pad]")
_BATCH_TEXTS = 4096
"""Texts at a time: what the library says of a token takes a hundred times the token itself."""


class TextTokenizer:
    """Text to codes and back.

    tokenizer = TextTokenizer.trained(section, texts, reserved=1)
    codes = tokenizer.encode(["to be or not to be"])    # [int32 (tokens,)]
    """

    def __init__(self, tokenizer: "Tokenizer", shift: Literal[0, 1]) -> None:
        # A tokenizer.json may ask for them; here lengths are the data set's business.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.shift = shift
        self._tokenizer = tokenizer

    @classmethod
    def trained(cls, section: TokenizerSection, texts: Sequence[str], reserved: int) -> "TextTokenizer":
        """Learns the vocabulary from these texts, and from nothing else: the same texts, the same tokenizer.

        Args:
            reserved: how many of `vocab_size` are no tokens of the text.
        """
        size = None if section.vocab_size is None else section.vocab_size - reserved
        match section.kind:
            case "bpe":
                assert size is not None
                return cls(_train_bpe(texts, size), 1)
            case "word":
                assert size is not None
                return cls(_train_words(texts, size), 1)
            case "byte":
                return cls(_bytes(), 1)
            case "char":
                return cls(_train_characters(texts, size), 1)
        raise AssertionError("the spec gives a tokenizer without a file a kind")

    @classmethod
    def loaded(cls, path: Path) -> "TextTokenizer":
        """Reads a tokenizer.json, which is data alone: no code of its own is run. Raises DataError."""
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError.at(_FILE, f"{path} is larger than a tokenizer may be", None, f"{MAX_FILE_BYTES} bytes")
        try:
            document = json.loads(path.read_bytes())
            tokenizer = _parse(document)
        except (ValueError, RecursionError) as error:
            raise DataError.at(_FILE, f"{path} is damaged or no tokenizer: {error}") from error
        return cls(tokenizer, 0 if tokenizer.id_to_token(0) in _PADDING else 1)

    @classmethod
    def from_json(cls, document: dict[str, Any], shift: Literal[0, 1]) -> "TextTokenizer":
        """Reads what to_json wrote. Raises ArtifactError for anything else."""
        try:
            return cls(_parse(document), shift)
        except ValueError as error:
            raise ArtifactError(f"the tokenizer is damaged: {error}") from error

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return document

    @property
    def num_codes(self) -> int:
        """Codes that can occur, 0 included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1 + self.shift

    def encode(self, texts: Sequence[str], *, special: bool) -> list[Codes]:
        """The codes of each text, none of them 0.

        Args:
            special: whether with the tokens that a loaded tokenizer puts around a text (BERT's [CLS] and [SEP]).

        Raises DataError for a text that a loaded tokenizer has no token for.
        """
        batches = (texts[first : first + _BATCH_TEXTS] for first in range(0, len(texts), _BATCH_TEXTS))
        return [codes for batch in batches for codes in self._encode_batch(batch, special)]

    def continuation(self, codes: Array, code: int) -> str:
        """The text that `code` adds after `codes`: a token's own text may depend on what it follows."""
        ids = (codes - self.shift).tolist()
        before = self._decode(ids)
        after = self._decode([*ids, code - self.shift])
        return after.removeprefix(before) if after.startswith(before) else self._decode([code - self.shift])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _encode_batch(self, texts: Sequence[str], special: bool) -> Iterator[Codes]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        except Exception as error:  # the library raises no narrower one
            raise DataError.at(_FILE, f"the tokenizer can't encode all of the text: {error}") from error
        for encoding in encodings:
            codes = np.array(encoding.ids, np.int32) + self.shift
            # Without a shift, text that spells out the padding would read as such.
            yield codes if self.shift else codes[codes != 0]


def fit_to(codes: Sequence[Codes], steps: int, *, truncate: bool, name: str, where: str) -> Codes:
    """One row a text, with 0 after its end: (texts, steps).

    Args:
        truncate: whether what is longer loses its end; else it is refused.
        name: where the texts are from, for messages.
        where: what in the spec or on the command line says how long a text may be.
    """
    lengths = np.array([len(sample) for sample in codes], np.int64)
    if not lengths.all():
        raise DataError.at(where, f"text {int(lengths.argmin()) + 1} of {name} has no tokens", None, "text in each")
    if not truncate and lengths.max(initial=0) > steps:
        first = int(np.argmax(lengths > steps))
        what = f"text {first + 1} of {name} has {lengths[first]} tokens, and a sample has {steps}"
        longest = f"a length up to {lengths.max()}, the longest; or truncate: true"
        raise DataError.at(where, what, None, longest if where.startswith("data.") else f"up to {steps} tokens")
    rows = np.zeros((len(codes), steps), np.int32)
    if len(codes):
        rows[present(lengths, steps)] = np.concatenate([sample[:steps] for sample in codes])
    return rows


def _parse(document: Any) -> "Tokenizer":
    """Raises ValueError for what is no tokenizer."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(str(error)) from error


def _train_bpe(texts: Sequence[str], size: int) -> "Tokenizer":
    """Byte pairs within words (Radford et al. 2019): all bytes are tokens, so that no text is unknown."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _on_bytes(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=_alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_words(texts: Sequence[str], size: int) -> "Tokenizer":
    """The most frequent words and punctuation marks; all others are one unknown word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel({}, _UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[_UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _bytes() -> "Tokenizer":
    from tokenizers import Tokenizer, models

    vocabulary = {letter: number for number, letter in enumerate(_alphabet())}
    return _on_bytes(Tokenizer(models.BPE(vocabulary, [])))


def _train_characters(texts: Sequence[str], size: int | None) -> "Tokenizer":
    """The characters there are, or the most frequent of them; all others are one unknown character."""
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    by_count = sorted(counts, key=lambda character: (-counts[character], character))
    kept = sorted(by_count if size is None else by_count[: size - 1])
    vocabulary = {_UNKNOWN: 0} | {character: number for number, character in enumerate(kept, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=_UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _on_bytes(tokenizer: "Tokenizer") -> "Tokenizer":
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    """The printable stand-ins for all 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
