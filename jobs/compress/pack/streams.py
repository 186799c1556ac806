"""Bytes in order, written and read, with sizes as varints: seven bits a byte, the lowest first (LEB128)."""

from jobs.errors import ArtifactError

_LONGEST_VARINT = 9
"""Bytes: enough for 2^63 - 1."""


class ByteWriter:
    def __init__(self) -> None:
        self._bytes = bytearray()

    def byte(self, value: int) -> None:
        self._bytes.append(value)

    def varint(self, value: int) -> None:
        while value > 0x7F:
            self._bytes.append(value & 0x7F | 0x80)
            value >>= 7
        self._bytes.append(value)

    def put(self, content: bytes) -> None:
        self._bytes += content

    def finish(self) -> bytes:
        return bytes(self._bytes)


class ByteReader:
    """Reads what is there, and raises ArtifactError where more is asked for."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise ArtifactError(f"the pack ends early: {count} bytes are missing of which {self.left} are there")
        self._at += count
        return self._content[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for place in range(_LONGEST_VARINT):
            following = self.byte()
            value |= (following & 0x7F) << (7 * place)
            if following < 0x80:
                return value
        raise ArtifactError("the pack holds a number that is too large")
