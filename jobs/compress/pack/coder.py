"""A binary adaptive range coder: decisions with probabilities that both sides learn as they go.

Integers alone, so every machine decodes the same. (Martin 1979; Rissanen & Langdon 1979; carries are passed back into
what was written.)
"""

from typing import Protocol

_TOP = 1 << 24
_FULL = 1 << 32
ONE = 1 << 16
"""A probability of 1."""
_LEAST = 16
"""No decision is taken to be surer than this many in ONE: so one that was not expected has a price, and no end."""
_MEMORY = 1000
"""Decisions that a probability is a mean of, at most."""


class Chance:
    """The probability that a decision is 1, learnt from those seen: a mean at first, then ever more of a memory."""

    __slots__ = ("ones", "seen")

    def __init__(self, ones: int = ONE // 2, seen: int = 0) -> None:
        self.ones, self.seen = ones, seen

    def learn(self, bit: int) -> None:
        # The first decisions move it by 2/3, 2/5, 2/7 … of the way: the estimate of Krichevsky and Trofimov.
        self.ones += 2 * ((ONE if bit else 0) - self.ones) // (2 * self.seen + 3)
        if self.seen < _MEMORY:
            self.seen += 1
        if self.ones < _LEAST:
            self.ones = _LEAST
        elif self.ones > ONE - _LEAST:
            self.ones = ONE - _LEAST


class Coder(Protocol):
    """The writer and the reader in one: what describes data to one describes them to the other."""

    def bit(self, chance: Chance, bit: int) -> int:
        """A writer codes `bit`; a reader ignores it. Both return the decision, and learn from it."""


class Writer:
    """Turns decisions into bytes."""

    def __init__(self) -> None:
        self._low, self._range = 0, _FULL - 1
        self._bytes = bytearray()

    def bit(self, chance: Chance, bit: int) -> int:
        bound = (self._range >> 16) * chance.ones
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        while self._range < _TOP:
            self._shift()
            self._range <<= 8
        chance.learn(bit)
        return bit

    def _shift(self) -> None:
        if self._low >= _FULL:
            self._low -= _FULL
            at = len(self._bytes) - 1
            while self._bytes[at] == 0xFF:
                self._bytes[at] = 0
                at -= 1
            self._bytes[at] += 1
        self._bytes.append(self._low >> 24)
        self._low = (self._low & 0xFFFFFF) << 8

    def finish(self) -> bytes:
        """All bytes; zeros at the end are left out, since a reader takes them to be there."""
        # Of all numbers that would do, the one with the most zeros at its end.
        for place in range(32, -1, -1):
            rounded = (self._low + (1 << place) - 1) >> place << place
            if rounded < self._low + self._range:
                self._low = rounded
                break
        for _ in range(5):
            self._shift()
        return bytes(self._bytes).rstrip(b"\0")


class Reader:
    """Turns the bytes of a Writer into its decisions, asked for in the same order with the same chances."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self._range = _FULL - 1
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, chance: Chance, bit: int = 0) -> int:
        bound = (self._range >> 16) * chance.ones
        if self._code < bound:
            self._range, found = bound, 1
        else:
            self._code -= bound
            self._range -= bound
            found = 0
        while self._range < _TOP:
            following = self._data[self._at] if self._at < len(self._data) else 0
            self._code = (self._code << 8 | following) & (_FULL - 1)
            self._at += 1
            self._range <<= 8
        chance.learn(found)
        return found


class Tree:
    """Chances for numbers below 2^width, a decision a bit, from the highest: 2^width - 1 chances."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._nodes = [Chance() for _ in range(1 << width)]

    def number(self, coder: Coder, value: int) -> int:
        """Codes `value`, or reads a number."""
        node = 1
        for place in range(self.width - 1, -1, -1):
            node = node << 1 | coder.bit(self._nodes[node], value >> place & 1)
        return node - (1 << self.width)
