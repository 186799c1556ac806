"""The values of an ONNX file's initializers, said by the stored tensors that they come from.

An exporter takes most tensors as they are. It transposes some, and computes batch normalization into the layer before
(W · scale/√(variance + ε), and likewise the bias): both are done again here, in float32 and in the same order, so
every bit comes out the same. Whether it does is seen when a pack is made: what these rules do not give is stored on its
own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from jobs.compress.pack.protobuf import FLOAT, Values
from jobs.compress.pack.stored import Slot
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.compress.pack.tensors import TensorReader, TensorWriter
from jobs.errors import ArtifactError

Floats = npt.NDArray[np.float32]
_EPSILONS = (1e-5, 1e-3, 1e-6, 1e-12)
"""Of batch normalization: torch's own first, then what other models have."""
LEAST = 16
"""Values of fewer bytes stay in the graph."""


class Source(IntEnum):
    OWN = 0
    """Bytes of their own."""
    SAME = 1
    """A stored tensor."""
    TRANSPOSED = 2
    """A stored matrix, its rows as columns."""
    SCALED = 3
    """Weights, with batch normalization computed into them."""
    SHIFTED = 4
    """A bias, likewise."""


@dataclass(frozen=True)
class Norm:
    """The numbers of the four tensors of a batch normalization among the stored ones."""

    scale: int
    shift: int
    mean: int
    variance: int


@dataclass
class Tensors:
    """The stored tensors by their number."""

    slots: tuple[Slot, ...]
    contents: list[bytes]
    _by_content: dict[bytes, int] = field(default_factory=dict)

    def array(self, index: int) -> Floats:
        if not 0 <= index < len(self.slots) or self.slots[index].dtype != "F32":
            raise ArtifactError(f"the pack is damaged: it has no float32 tensor of number {index}")
        slot = self.slots[index]
        return np.frombuffer(self.contents[index], "<f4").reshape(slot.shape)

    def find(self, content: bytes) -> int | None:
        if not self._by_content:
            self._by_content = {content: i for i, content in reversed(list(enumerate(self.contents)))}
        return self._by_content.get(content)

    def norms(self) -> list[Norm]:
        numbers = {slot.name: index for index, slot in enumerate(self.slots) if slot.dtype == "F32"}
        prefixes = [name.removesuffix("running_var") for name in numbers if name.endswith("running_var")]
        parts = [
            [f"{prefix}{part}" for part in ("weight", "bias", "running_mean", "running_var")] for prefix in prefixes
        ]
        return [Norm(*(numbers[name] for name in names)) for names in parts if all(name in numbers for name in names)]


def scaled(tensors: Tensors, weight: int, norm: Norm, epsilon: np.float32) -> bytes:
    """Weights (outputs, …) times scale/√(variance + ε)."""
    values, factor = tensors.array(weight), _factor(tensors, norm, epsilon)
    if values.ndim < 2 or len(values) != len(factor):
        raise ArtifactError("the pack is damaged: a batch normalization does not fit its layer")
    return (values * factor.reshape(-1, *[1] * (values.ndim - 1))).astype("<f4").tobytes()


def shifted(tensors: Tensors, bias: int | None, norm: Norm, epsilon: np.float32) -> bytes:
    """(bias - mean) · scale/√(variance + ε) + shift; without a bias, 0 is in its place."""
    factor, mean, shift = _factor(tensors, norm, epsilon), tensors.array(norm.mean), tensors.array(norm.shift)
    start = tensors.array(bias) if bias is not None else np.zeros_like(mean)
    if not start.shape == factor.shape == mean.shape == shift.shape:
        raise ArtifactError("the pack is damaged: a batch normalization does not fit its layer")
    return ((start - mean) * factor + shift).astype("<f4").tobytes()


def _factor(tensors: Tensors, norm: Norm, epsilon: np.float32) -> Floats:
    scale, variance = tensors.array(norm.scale), tensors.array(norm.variance)
    if scale.shape != variance.shape or scale.ndim != 1:
        raise ArtifactError("the pack is damaged: a batch normalization does not fit its layer")
    with np.errstate(all="ignore"):
        factor: Floats = scale / np.sqrt(variance + epsilon)
    return factor


# -- writing: the source of each initializer is searched for


def write_values(writer: TensorWriter, tensors: Tensors, values: Values, content: bytes) -> None:
    """Says `content`, the bytes of an initializer, by the stored tensors if they give it."""
    plain = writer.plain
    if (index := tensors.find(content)) is not None:
        plain.byte(Source.SAME)
        return plain.varint(index)
    if values.data_type == FLOAT:
        for index in _matrices(tensors, values.shape[::-1]):
            if np.ascontiguousarray(tensors.array(index).T).tobytes() == content:
                plain.byte(Source.TRANSPOSED)
                return plain.varint(index)
        for source, start, norm, epsilon in _folded(tensors, values, content):
            plain.byte(source)
            plain.varint(start)
            _write_norm(plain, norm, epsilon)
            return None
    plain.byte(Source.OWN)
    plain.varint(len(content))
    plain.byte(int(values.data_type == FLOAT))
    shape = (len(content) // 4,) if values.data_type == FLOAT else (len(content),)
    return writer.write(content, _dtype(values.data_type == FLOAT), shape)


def _matrices(tensors: Tensors, shape: tuple[int, ...]) -> Iterator[int]:
    for index, slot in enumerate(tensors.slots):
        if len(shape) == 2 and slot.shape == shape and slot.dtype == "F32":
            yield index


def _folded(tensors: Tensors, values: Values, content: bytes) -> Iterator[tuple[Source, int, Norm, np.float32]]:
    """How batch normalization gives these bytes: (source, number of what it starts from, norm, ε)."""
    norms = [norm for norm in tensors.norms() if tensors.slots[norm.scale].shape == values.shape[:1]]
    weights = [i for i, s in enumerate(tensors.slots) if s.shape == values.shape and s.dtype == "F32"]
    # The one of the same name first: usually it is.
    weights.sort(key=lambda index: tensors.slots[index].name != values.name)
    for epsilon in map(np.float32, _EPSILONS):
        for norm in norms:
            if len(values.shape) > 1:
                for index in weights:
                    if scaled(tensors, index, norm, epsilon) == content:
                        yield Source.SCALED, index, norm, epsilon
            else:
                for bias in (None, *weights):
                    if shifted(tensors, bias, norm, epsilon) == content:
                        yield Source.SHIFTED, 0 if bias is None else bias + 1, norm, epsilon


def _write_norm(plain: ByteWriter, norm: Norm, epsilon: np.float32) -> None:
    for index in (norm.scale, norm.shift, norm.mean, norm.variance):
        plain.varint(index)
    plain.put(epsilon.astype("<f4").tobytes())


# -- reading


def read_values(reader: TensorReader, tensors: Tensors) -> bytes:
    """The bytes of the next initializer. Raises ArtifactError for what no writer writes."""
    plain = reader.plain
    source = plain.byte()
    match source:
        case Source.OWN:
            size, is_float = plain.varint(), plain.byte() == 1
            if is_float and size % 4:
                raise ArtifactError("the pack is damaged: float32 values of a size that is no multiple of 4")
            return reader.read(_dtype(is_float), (size // 4,) if is_float else (size,), size)
        case Source.SAME:
            index = plain.varint()
            if index >= len(tensors.contents):
                raise ArtifactError(f"the pack is damaged: it has no tensor of number {index}")
            return tensors.contents[index]
        case Source.TRANSPOSED:
            return np.ascontiguousarray(tensors.array(plain.varint()).T).tobytes()
        case Source.SCALED:
            weight = plain.varint()
            return scaled(tensors, weight, *_read_norm(plain))
        case Source.SHIFTED:
            bias = plain.varint()
            return shifted(tensors, bias - 1 if bias else None, *_read_norm(plain))
    raise ArtifactError(f"the pack is damaged: no values come from a source of kind {source}")


def _read_norm(plain: ByteReader) -> tuple[Norm, np.float32]:
    norm = Norm(plain.varint(), plain.varint(), plain.varint(), plain.varint())
    return norm, np.frombuffer(plain.take(4), "<f4").astype(np.float32)[0]


def _dtype(is_float: bool) -> str:
    return "F32" if is_float else "U8"
