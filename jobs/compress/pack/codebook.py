"""Tensors of zeros and a few values: which they are, where they lie, and which of them lies where."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from jobs.compress.pack.coder import Chance, Coder, Tree
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.errors import ArtifactError

Floats = npt.NDArray[np.float32]
LARGEST = 256
EXPONENTS = range(-126, 121)
"""Of the steps of fixed point: neither they nor 127 of them leave float32's normal numbers."""


class Entries(IntEnum):
    """What the values of a codebook are stored as."""

    FLOAT = 0
    HALF = 1
    FIXED = 2


@dataclass(frozen=True)
class Codebook:
    """A tensor as zeros and a few values.

    Attributes:
        entries: the values, ascending; +0 is none of them.
        positions: where they lie, ascending, rows first.
        indices: which entry lies at each position.
    """

    entries: Floats
    positions: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]

    @property
    def width(self) -> int:
        """Bits of an index."""
        return (len(self.entries) - 1).bit_length()


def same(a: Floats, b: Floats) -> bool:
    """Bit for bit: 0 and -0 differ, and a NaN is itself."""
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def find_codebook(values: Floats) -> Codebook | None:
    """The few values that a tensor is made of beside zeros; None if there are none, or too many to gain by it."""
    bits = values.view(np.uint32)
    positions = np.flatnonzero(bits)
    first = np.unique(bits[positions[:4096]])  # tells soon that a tensor is none of these
    if not 0 < len(first) <= LARGEST:
        return None
    patterns, inverse = np.unique(bits[positions], return_inverse=True)
    entries = patterns.view(np.float32)
    if len(patterns) > LARGEST or 2 * len(patterns) > len(values) or np.isnan(entries).any():
        return None
    order = np.argsort(entries, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return Codebook(entries[order], positions, rank[inverse])


def fixed_levels(values: Floats) -> tuple[int, npt.NDArray[np.int64]] | None:
    """(e, levels) with values = levels · 2^e and levels within ±127, e as large as can be; None if there are none."""
    if not np.isfinite(values).all():
        return None
    exact = values.astype(np.float64)
    largest = float(np.abs(exact).max(initial=0.0))
    start = int(np.floor(np.log2(largest))) if largest else 0
    for exponent in range(start, start - 7, -1):
        levels = np.round(exact / 2.0**exponent)
        if exponent in EXPONENTS and same(from_levels(levels.astype(np.int64), exponent), values):
            return exponent, levels.astype(np.int64)
    return None


def as_half(values: Floats) -> bytes | None:
    """The values in half precision, if that is exact."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    return half.tobytes() if same(half.astype(np.float32), values) else None


def from_levels(levels: npt.NDArray[np.int64], exponent: int) -> Floats:
    return (levels * 2.0**exponent).astype(np.float32)


def write_exponent(plain: ByteWriter, exponent: int) -> None:
    plain.byte(exponent + 128)


def read_exponent(plain: ByteReader) -> int:
    exponent = plain.byte() - 128
    if exponent not in EXPONENTS:
        raise ArtifactError(f"the pack is damaged: a step of 2^{exponent}")
    return exponent


def write_entries(plain: ByteWriter, coder: Coder, entries: Floats) -> None:
    plain.byte(len(entries) - 1)
    if (fixed := fixed_levels(entries)) is not None:
        plain.byte(Entries.FIXED)
        write_exponent(plain, fixed[0])
        _code_levels(coder, set(fixed[1].tolist()))
    elif (half := as_half(entries)) is not None:
        plain.byte(Entries.HALF)
        plain.put(half)
    else:
        plain.byte(Entries.FLOAT)
        plain.put(entries.astype("<f4").tobytes())


def read_entries(plain: ByteReader, coder: Coder) -> Floats:
    count, kind = plain.byte() + 1, plain.byte()
    match kind:
        case Entries.FIXED:
            exponent = read_exponent(plain)
            levels = _code_levels(coder, None)
            if len(levels) != count:
                raise ArtifactError("the pack is damaged: a codebook has more or fewer entries than it says")
            return from_levels(np.array(levels, np.int64), exponent)
        case Entries.HALF:
            return np.frombuffer(plain.take(2 * count), "<f2").astype(np.float32)
        case Entries.FLOAT:
            return np.frombuffer(plain.take(4 * count), "<f4").astype(np.float32)
    raise ArtifactError(f"the pack is damaged: no codebook is of kind {kind}")


def _code_levels(coder: Coder, levels: set[int] | None) -> list[int]:
    """The levels are distinct and ascend, so which of the 254 are there says it all; 0 never is."""
    chance = Chance()
    candidates = [level for level in range(-127, 128) if level]
    return [level for level in candidates if coder.bit(chance, int(levels is not None and level in levels))]


def code_indices(coder: Coder, width: int, indices: list[int] | None, count: int) -> list[int]:
    """Writes or reads `count` indices below 2^width."""
    tree = Tree(width)
    return [tree.number(coder, indices[at] if indices is not None else 0) for at in range(count)]
