"""From raw samples to what the model takes. An encoding travels in the artifact card: prediction needs no dataset."""

from typing import assert_never

from jobs.data.encodings.encoding import Encoded, Encoding
from jobs.data.encodings.image import ImageEncoding, image_encoding
from jobs.data.encodings.steps import (
    SequenceEncoding,
    TextEncoding,
    TokensEncoding,
    sequence_encoding,
    text_encoding,
    tokens_encoding,
)
from jobs.data.encodings.table import (
    BinnedFeature,
    CategoricalFeature,
    CodesEncoding,
    NumericFeature,
    RowEncoding,
    TableEncoding,
    codes_encoding,
    table_encoding,
)
from jobs.data.statistics import (
    CodesStatistics,
    ImageStatistics,
    SequenceStatistics,
    Statistics,
    TableStatistics,
    TextStatistics,
    TokensStatistics,
)

__all__ = [
    "KINDS",
    "BinnedFeature",
    "CategoricalFeature",
    "CodesEncoding",
    "Encoded",
    "Encoding",
    "ImageEncoding",
    "NumericFeature",
    "RowEncoding",
    "SequenceEncoding",
    "TableEncoding",
    "TextEncoding",
    "TokensEncoding",
    "make_encoding",
]

KINDS: dict[str, type[Encoding]] = {
    "image": ImageEncoding,
    "table": TableEncoding,
    "codes": CodesEncoding,
    "sequence": SequenceEncoding,
    "tokens": TokensEncoding,
    "text": TextEncoding,
}


def make_encoding(statistics: Statistics, normalize: str) -> Encoding:
    """The encoding that `data.normalize` (none, unit, standardize) asks for; tokens and codes have none of these."""
    match statistics:
        case ImageStatistics():
            return image_encoding(statistics, normalize)
        case TableStatistics():
            return table_encoding(statistics, normalize)
        case CodesStatistics():
            return codes_encoding(statistics)
        case SequenceStatistics():
            return sequence_encoding(statistics, normalize)
        case TokensStatistics():
            return tokens_encoding(statistics)
        case TextStatistics():
            return text_encoding(statistics)
    assert_never(statistics)
