"""The outside of a pack: what it is, which version, that it is whole, and its three sections.

    bytes  what
    4      "THPK"
    1      version of the format
    4      CRC-32 of everything that follows
    32     SHA-256 over the SHA-256 digests of the restored files
    …      seven varints: sizes
    …      text, plain, coded

docs/pack.md describes what is inside. Numbers are little-endian.
"""

import zlib
from dataclasses import dataclass

import zstandard

from jobs.compress.pack.dictionary import DICTIONARY
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.errors import ArtifactError

MAGIC = b"THPK"
VERSION = 1
LARGEST = 4 << 30
"""Bytes that a pack may restore to."""
LARGEST_RATIO = 10_000
"""… and how many for each of its own: what says more is no model, but means to fill memory."""
_SPARE = 1 << 20
_LEVEL = 22
_LEVEL_LARGE = 9
_LARGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Sections:
    """What lies in a pack.

    Attributes:
        text: the recipe, the header of the tensors, the graph.
        plain: of the tensors, what is bytes.
        coded: of the tensors, what is decisions of the range coder.
        digest: SHA-256, 32 bytes.
        data_size: bytes of all tensors restored.
        onnx_size: bytes of the ONNX file restored.
    """

    text: bytes
    plain: bytes
    coded: bytes
    digest: bytes
    data_size: int
    onnx_size: int


def write_container(sections: Sections) -> bytes:
    text, plain = _compress(sections.text, DICTIONARY), _compress(sections.plain, b"")
    sizes = ByteWriter()
    for size in (len(sections.text), len(text), len(sections.plain), len(plain), len(sections.coded)):
        sizes.varint(size)
    sizes.varint(sections.data_size)
    sizes.varint(sections.onnx_size)
    rest = sections.digest + sizes.finish() + text + plain + sections.coded
    return MAGIC + bytes([VERSION]) + zlib.crc32(rest).to_bytes(4, "little") + rest


def read_container(content: bytes) -> Sections:
    """The sections of a pack. Raises ArtifactError for anything else; nothing large is made before that is known."""
    if content[:4] != MAGIC:
        raise ArtifactError("this is no pack of Thresher's: it begins with other bytes")
    if len(content) < 41:
        raise ArtifactError("the pack ends early: it is shorter than its head")
    if content[4] > VERSION:
        raise ArtifactError(
            f"the pack is of format version {content[4]}; this version of Thresher reads up to {VERSION}: upgrade"
        )
    if content[4] < 1:
        raise ArtifactError("the pack is damaged: there is no format version 0")
    if zlib.crc32(content[9:]) != int.from_bytes(content[5:9], "little"):
        raise ArtifactError("the pack is damaged or cut short: its checksum differs")
    reader = ByteReader(content[9:])
    digest = reader.take(32)
    text_size, text, plain_size, plain, coded, data_size, onnx_size = (reader.varint() for _ in range(7))
    if text + plain + coded != reader.left:
        raise ArtifactError("the pack is damaged: its sections are not as long as it says")
    restored = text_size + plain_size + data_size + onnx_size
    if restored > min(LARGEST, LARGEST_RATIO * len(content) + _SPARE):
        raise ArtifactError(f"the pack of {len(content)} bytes says that it holds {restored}: that is not believed")
    return Sections(
        text=_decompress(reader.take(text), text_size, DICTIONARY),
        plain=_decompress(reader.take(plain), plain_size, b""),
        coded=reader.take(coded),
        digest=digest,
        data_size=data_size,
        onnx_size=onnx_size,
    )


def _compress(content: bytes, dictionary: bytes) -> bytes:
    """A zstd frame without what is known anyway; the content itself, where a frame would not be shorter."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL if len(content) <= _LARGE_BYTES else _LEVEL_LARGE,
        source_size=len(content),
        dict_size=len(dictionary),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    known = _dictionary(dictionary)
    frame = zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(content)
    return frame if len(frame) < len(content) else content


def _decompress(stored: bytes, size: int, dictionary: bytes) -> bytes:
    if len(stored) == size:
        return stored
    decompressor = zstandard.ZstdDecompressor(
        dict_data=_dictionary(dictionary), format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
    try:
        # In parts: a frame may declare any size, and the whole of it would be made room for.
        with decompressor.stream_reader(stored) as stream:
            content = stream.read(size + 1)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"the pack is damaged: {error}") from error
    if len(content) != size:
        raise ArtifactError("the pack is damaged: a section is not as long as it says")
    return content


def _dictionary(content: bytes) -> zstandard.ZstdCompressionDict | None:
    if not content:
        return None
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
