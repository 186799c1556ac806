"""Where samples come from: one module a kind, all behind the Source protocol."""

from typing import assert_never

from jobs.data.sources.source import Contents, Outline, Source
from jobs.spec.data import (
    BuiltinSource,
    CifarSource,
    CsvSource,
    Data,
    IdxSource,
    ImageFolderSource,
    NpzSource,
    ParquetSource,
    TextSource,
)

__all__ = ["Contents", "Outline", "Source", "open_source"]


def open_source(data: Data) -> Source:
    """The source that a spec names. Raises DataError where it is not there.

    The modules are imported as they are needed: planning a job on images should not wait for the CSV reader.
    """
    match data.source:
        case BuiltinSource() as source:
            from jobs.data.sources.builtin import Builtin

            return Builtin(source)
        case IdxSource() as source:
            from jobs.data.sources.idx import Idx

            return Idx(source)
        case CifarSource() as source:
            from jobs.data.sources.cifar import Cifar

            return Cifar(source)
        case NpzSource() as source:
            from jobs.data.sources.npz import Npz

            return Npz(source)
        case ImageFolderSource() as source:
            from jobs.data.sources.image_folder import ImageFolder

            return ImageFolder(source)
        case CsvSource() | ParquetSource() as source:
            from jobs.data.sources.table import Table

            assert data.target is not None  # the spec sees to it
            return Table(source, data.target, data.categories)
        case TextSource() as source:
            from jobs.data.sources.text import Text

            return Text(source, data.target)
    assert_never(data.source)
