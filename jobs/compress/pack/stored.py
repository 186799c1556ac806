"""A safetensors file taken apart: its header as it stands, and its tensors. https://github.com/huggingface/safetensors"""

import json
from dataclasses import dataclass
from math import prod

from jobs.errors import ArtifactError

_LARGEST_HEADER = 100 << 20
_WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
_WIDTHS |= {"I64": 8, "U64": 8, "F64": 8}


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the data of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def split(content: bytes) -> tuple[bytes, bytes]:
    """(header, data) of a file."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < size <= min(_LARGEST_HEADER, len(content) - 8):
        raise ArtifactError("the safetensors file is damaged: its header is longer than the file")
    return content[8 : 8 + size], content[8 + size :]


def slots(header: bytes) -> tuple[Slot, ...]:
    """The tensors that a header lists, in the order of their data, which they fill without gaps.

    Raises ArtifactError for any other header.
    """
    try:
        document = json.loads(header)
        found = [
            Slot(name, str(entry["dtype"]), tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in document.items()
            if name != "__metadata__"
        ]
        found.sort(key=lambda slot: (slot.start, slot.end))
        at = 0
        for slot in found:
            sizes = [*slot.shape, slot.start, slot.end]
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(f"{slot.name} has no shape")
            if slot.start != at or slot.size != prod(slot.shape) * _WIDTHS[slot.dtype]:
                raise ValueError(f"{slot.name} does not fit its place")
            at = slot.end
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the header of the safetensors file is damaged: {error}") from error
    return tuple(found)
