"""Small texts, the tokenizers for them, and a look at what a data set made of them."""

from pathlib import Path
from typing import Any

import numpy as np

from jobs.data import Dataset
from jobs.data.encodings import TextEncoding

PROSE = Path(__file__).parents[3].joinpath("LICENSE").read_text()
"""Eleven thousand characters of English."""
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"kind": "bpe", "vocab_size": 400},
    "word": {"kind": "word", "vocab_size": 300},
    "byte": {"kind": "byte"},
    "char": {"kind": "char"},
}
REVIEWS = [
    {"text": f"{'good ' * (1 + i % 3)}story number {i}", "label": "pos" if i % 2 else "neg", "stars": 0.5 * (i % 5)}
    for i in range(60)
]


def text_encoding(dataset: Dataset) -> TextEncoding:
    encoding = dataset.encoding("standardize")
    assert isinstance(encoding, TextEncoding)
    return encoding


def spelled(encoding: TextEncoding, codes: np.ndarray) -> str:
    """The text that codes stand for."""
    empty = codes[:0]
    return "".join(encoding.continuation(empty, int(code)) for code in codes)
