"""How a tensor lies in a pack. Nothing is lost here: what comes out has the bits of what went in.

Every tensor has a kind, and parts in two streams: bytes, which zstd compresses later, and decisions, which the range
coder takes. The writer finds the shortest kind that can say the tensor.
"""

from dataclasses import dataclass
from enum import IntEnum
from math import prod

import numpy as np
import numpy.typing as npt

from jobs.compress.pack.codebook import (
    Codebook,
    Floats,
    as_half,
    code_indices,
    find_codebook,
    fixed_levels,
    from_levels,
    read_entries,
    read_exponent,
    write_entries,
    write_exponent,
)
from jobs.compress.pack.coder import Reader, Tree, Writer
from jobs.compress.pack.positions import code_positions
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.errors import ArtifactError

MOST_DECISIONS = 1 << 20
"""Places of a tensor up to which each is a decision of the range coder, which takes about 1 µs for it."""


class Kind(IntEnum):
    RAW = 0
    """The bytes as they are."""
    HALF = 1
    """float32 that half precision can express."""
    FIXED = 2
    """float32 that are multiples of a power of two, -127 to 127 of it: by the range coder."""
    LINES = 3
    """Zeros and a codebook: positions and indices by the range coder."""
    COLUMNS = 4
    """The same, column by column."""
    GAPS = 5
    """Zeros and a codebook: distances and indices as bytes, for what is too large for the range coder."""


@dataclass(frozen=True)
class TensorWriter:
    """The two streams under way, and what tensors in fixed point share: the chances of their levels."""

    plain: ByteWriter
    coder: Writer
    levels: Tree

    @classmethod
    def begin(cls) -> "TensorWriter":
        return cls(ByteWriter(), Writer(), Tree(8))

    def write(self, content: bytes, dtype: str, shape: tuple[int, ...]) -> None:
        """Adds a tensor.

        Args:
            content: little-endian, rows first, as in a safetensors file.
            dtype: as safetensors names it; what is no "F32" stays as it is.
        """
        if dtype == "F32" and content:
            values = np.frombuffer(content, "<f4").astype(np.float32, copy=False)
            codebook = find_codebook(values)
            if codebook is not None:
                return self._codebook(codebook, shape)
            if (fixed := fixed_levels(values)) is not None and len(values) <= MOST_DECISIONS:
                self.plain.byte(Kind.FIXED)
                write_exponent(self.plain, fixed[0])
                for level in fixed[1].tolist():
                    self.levels.number(self.coder, level + 128)
                return None
            if (half := as_half(values)) is not None:
                self.plain.byte(Kind.HALF)
                return self.plain.put(half)
        self.plain.byte(Kind.RAW)
        return self.plain.put(content)

    def _codebook(self, codebook: Codebook, shape: tuple[int, ...]) -> None:
        count, rows = prod(shape), shape[0] if shape else 1
        if count > MOST_DECISIONS:
            self.plain.byte(Kind.GAPS)
            write_entries(self.plain, self.coder, codebook.entries)
            return self._gaps(codebook)
        mask = np.zeros(count, np.uint8)
        mask[codebook.positions] = 1
        places = mask.tolist()
        sizes = {}
        for columns in (False, True):
            probe = Writer()
            code_positions(probe, places, rows, count // rows, columns)
            sizes[columns] = len(probe.finish())
        by_columns = sizes[True] < sizes[False]
        self.plain.byte(Kind.COLUMNS if by_columns else Kind.LINES)
        write_entries(self.plain, self.coder, codebook.entries)
        order = code_positions(self.coder, places, rows, count // rows, by_columns)
        at = dict(zip(codebook.positions.tolist(), codebook.indices.tolist(), strict=True))
        code_indices(self.coder, codebook.width, [at[position] for position in order], len(order))
        return None

    def _gaps(self, codebook: Codebook) -> None:
        """A gap is the zeros before a value: as many bytes of 255 as go into it, then the rest."""
        gaps = np.diff(codebook.positions, prepend=-1) - 1
        lengths = gaps // 255 + 1
        spread = np.full(int(lengths.sum()), 255, np.uint8)
        spread[np.cumsum(lengths) - 1] = gaps % 255
        self.plain.varint(len(gaps))
        self.plain.varint(len(spread))
        self.plain.put(spread.tobytes())
        self.plain.put(codebook.indices.astype(np.uint8).tobytes())


@dataclass
class TensorReader:
    """Reads tensors in the order in which they were written. Raises ArtifactError for what no writer writes.

    Attributes:
        allowed: bytes that the tensors still to come may have, all together.
    """

    plain: ByteReader
    coder: Reader
    levels: Tree
    allowed: int

    @classmethod
    def begin(cls, plain: bytes, coded: bytes, allowed: int) -> "TensorReader":
        return cls(ByteReader(plain), Reader(coded), Tree(8), allowed)

    def read(self, dtype: str, shape: tuple[int, ...], size: int) -> bytes:
        """The next tensor, of `size` bytes."""
        self.allowed -= size
        if self.allowed < 0:
            raise ArtifactError("the pack is damaged: its tensors are larger than it says")
        kind, count = self.plain.byte(), prod(shape)
        if kind == Kind.RAW:
            return self.plain.take(size)
        if dtype != "F32" or count * 4 != size:
            raise ArtifactError(f"the pack is damaged: a tensor of {dtype} is of kind {kind}")
        if kind not in (Kind.HALF, Kind.GAPS) and not 0 < count <= MOST_DECISIONS:
            raise ArtifactError(f"the pack is damaged: a tensor of {count} values is of kind {kind}")
        match kind:
            case Kind.HALF:
                return np.frombuffer(self.plain.take(2 * count), "<f2").astype("<f4").tobytes()
            case Kind.FIXED:
                exponent = read_exponent(self.plain)
                levels = [self.levels.number(self.coder, 0) - 128 for _ in range(count)]
                return from_levels(np.array(levels, np.int64), exponent).astype("<f4").tobytes()
            case Kind.LINES | Kind.COLUMNS:
                return self._codebook(count, shape[0] if shape else 1, kind == Kind.COLUMNS)
            case Kind.GAPS:
                return self._gaps(count)
        raise ArtifactError(f"the pack is damaged: no tensor is of kind {kind}")

    def _codebook(self, count: int, rows: int, by_columns: bool) -> bytes:
        entries = read_entries(self.plain, self.coder)
        order = code_positions(self.coder, None, rows, count // rows, by_columns)
        indices = code_indices(self.coder, (len(entries) - 1).bit_length(), None, len(order))
        return _filled(count, entries, np.array(order, np.int64), np.array(indices, np.int64))

    def _gaps(self, count: int) -> bytes:
        entries = read_entries(self.plain, self.coder)
        number, length = self.plain.varint(), self.plain.varint()
        spread = np.frombuffer(self.plain.take(length), np.uint8)
        indices = np.frombuffer(self.plain.take(number), np.uint8).astype(np.int64)
        ends = np.flatnonzero(spread < 255)
        if len(ends) != number or (length and (not number or ends[-1] != length - 1)):
            raise ArtifactError("the pack is damaged: a tensor has more or fewer values than it says")
        positions = np.cumsum(spread.astype(np.int64))[ends] + np.arange(number)
        return _filled(count, entries, positions, indices)


def _filled(count: int, entries: Floats, positions: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> bytes:
    if len(indices) and (indices.max() >= len(entries) or positions.max() >= count):
        raise ArtifactError("the pack is damaged: a value lies beyond its tensor, or is none of its codebook")
    values = np.zeros(count, "<f4")
    values[positions] = entries[indices]
    return values.tobytes()
