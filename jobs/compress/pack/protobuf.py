"""Where in the bytes of an ONNX file the values of its initializers lie.

Protocol Buffers write the same message in many ways, so a file that is to come back bit for bit is not parsed and
written anew: its values are cut out, and put in again. https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import ArtifactError

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
FLOAT = 1
"""TensorProto.DataType of float32."""


@dataclass(frozen=True)
class Values:
    """The raw values of an initializer: bytes `start` to `end` of the file."""

    name: str
    shape: tuple[int, ...]
    data_type: int
    start: int
    end: int


def initializer_values(content: bytes) -> list[Values]:
    """Every initializer with raw values, in the order of the file. Raises ArtifactError for a damaged one."""
    found: list[Values] = []
    for number, kind, start, end in _fields(content, 0, len(content)):
        if number == _GRAPH and kind == _BYTES:
            for inner, inner_kind, first, last in _fields(content, start, end):
                if inner == _INITIALIZER and inner_kind == _BYTES:
                    found += _values(content, first, last)
    return found


def _values(content: bytes, start: int, end: int) -> Iterator[Values]:
    name, data_type, spans = "", 0, []
    shape: list[int] = []
    for number, kind, first, last in _fields(content, start, end):
        if number == _DIMS and kind == _VARINT:
            shape.append(_varint(content, first, last)[0])
        elif number == _DIMS and kind == _BYTES:
            at = first
            while at < last:
                size, at = _varint(content, at, last)
                shape.append(size)
        elif number == _DATA_TYPE and kind == _VARINT:
            data_type = _varint(content, first, last)[0]
        elif number == _NAME and kind == _BYTES:
            name = content[first:last].decode("utf-8", "replace")
        elif number == _RAW_DATA and kind == _BYTES:
            spans.append((first, last))
    if len(spans) == 1:
        yield Values(name, tuple(shape), data_type, *spans[0])


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start, end) of the values of a message's fields."""
    while at < end:
        tag, at = _varint(content, at, end)
        kind = tag & 7
        if kind == _VARINT:
            last = _varint(content, at, end)[1]
        elif kind == _FIXED64:
            last = at + 8
        elif kind == _FIXED32:
            last = at + 4
        elif kind == _BYTES:
            size, at = _varint(content, at, end)
            last = at + size
        else:
            raise ArtifactError("the ONNX file is damaged: a field of an unknown kind")
        if last > end:
            raise ArtifactError("the ONNX file is damaged: a field is longer than what it lies in")
        yield tag >> 3, kind, at, last
        at = last


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        value |= (content[at] & 0x7F) << shift
        shift += 7
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ArtifactError("the ONNX file is damaged: a number without an end")
