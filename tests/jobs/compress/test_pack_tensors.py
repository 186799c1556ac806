"""Single tensors, and the coder: whatever goes in comes out, bit for bit."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.compress.pack.codebook import fixed_levels, from_levels
from jobs.compress.pack.coder import Chance, Reader, Tree, Writer
from jobs.compress.pack.positions import code_positions
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.compress.pack.tensors import MOST_DECISIONS, Kind, TensorReader, TensorWriter
from jobs.errors import ArtifactError
from tests.jobs.compress.small_packs import sparse


def there_and_back(*tensors: np.ndarray) -> list[Kind]:
    writer = TensorWriter.begin()
    kinds = []
    for tensor in tensors:
        before = len(writer.plain.finish())
        writer.write(tensor.tobytes(), "F32" if tensor.dtype == np.float32 else "I64", tensor.shape)
        kinds.append(Kind(writer.plain.finish()[before]))
    allowed = sum(tensor.nbytes for tensor in tensors)
    reader = TensorReader.begin(writer.plain.finish(), writer.coder.finish(), allowed)
    for tensor in tensors:
        dtype = "F32" if tensor.dtype == np.float32 else "I64"
        assert reader.read(dtype, tensor.shape, tensor.nbytes) == tensor.tobytes()
    assert reader.plain.left == 0
    return kinds


SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
ANY = arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
FEW = arrays.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.0, 0.0, -0.0, 0.5, -1.25, 1e-40, 3.1415]))
FIXED = arrays.arrays(np.int8, SHAPES, elements=st.integers(-127, 127)).map(lambda a: (a / 32).astype(np.float32))
HALF = arrays.arrays(np.float16, SHAPES, elements=st.floats(width=16)).map(lambda a: a.astype(np.float32))
INTEGERS = arrays.arrays(np.int64, SHAPES, elements=st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ANY, FEW, FIXED, HALF, INTEGERS), max_size=5))
def test_whatever_goes_in_comes_out(tensors: list[np.ndarray]) -> None:
    there_and_back(*tensors)


def test_each_tensor_is_of_the_shortest_kind() -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(40).astype(np.float32)
    columns = np.zeros((40, 50), np.float32)
    columns[:, ::10] = sparse(rng, (40, 5), 1.0)
    levels = (rng.permutation(120) - 60).astype(np.float32) / 64
    large = np.zeros((MOST_DECISIONS // 8 + 1, 8), np.float32)
    large[rng.integers(0, len(large), 500), 3] = 0.25
    kinds = there_and_back(
        normal, normal.astype(np.float16).astype(np.float32), levels, columns.T.copy(), columns, large, np.arange(3)
    )
    assert kinds == [Kind.RAW, Kind.HALF, Kind.FIXED, Kind.LINES, Kind.COLUMNS, Kind.GAPS, Kind.RAW]


def test_a_sparse_tensor_takes_about_its_entropy() -> None:
    rng = np.random.default_rng(0)
    tensor = sparse(rng, (200, 300), 0.05)
    density = np.count_nonzero(tensor) / tensor.size
    entropy = -density * np.log2(density) - (1 - density) * np.log2(1 - density) + density * 4  # 16 values
    writer = TensorWriter.begin()
    writer.write(tensor.tobytes(), "F32", tensor.shape)
    size = len(writer.plain.finish()) + len(writer.coder.finish())
    assert size < 1.03 * entropy * tensor.size / 8 + 20


def test_rows_that_differ_in_density_take_less() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat([0.0, 0.3], 50)[rng.permutation(100)]
    mask = (rng.random((400, 100)) < rows).astype(int)
    coder = Writer()
    code_positions(coder, mask.flatten().tolist(), 400, 100, False)
    density = mask.mean()
    entropy = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
    assert len(coder.finish()) < 0.75 * entropy * mask.size / 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=400), st.lists(st.integers(0, 255)))
def test_the_coder_gives_back_every_decision(bits: list[tuple[int, int]], numbers: list[int]) -> None:
    writer, chances, tree = Writer(), [Chance() for _ in range(4)], Tree(8)
    for which, bit in bits:
        writer.bit(chances[which], bit)
    for number in numbers:
        tree.number(writer, number)
    reader, chances, tree = Reader(writer.finish()), [Chance() for _ in range(4)], Tree(8)
    assert [reader.bit(chances[which]) for which, _ in bits] == [bit for _, bit in bits]
    assert [tree.number(reader, 0) for _ in numbers] == numbers


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_varints(numbers: list[int]) -> None:
    writer = ByteWriter()
    for number in numbers:
        writer.varint(number)
    reader = ByteReader(writer.finish())
    assert [reader.varint() for _ in numbers] == numbers


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff" * 12])
def test_varints_that_end_nowhere_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError):
        ByteReader(content).varint()


@given(st.integers(-126, 113), st.lists(st.integers(-127, 127), min_size=1))
def test_fixed_point_is_recognized(exponent: int, levels: list[int]) -> None:
    values = from_levels(np.array(levels), exponent)
    found = fixed_levels(values)
    assert found is not None
    assert from_levels(found[1], found[0]).tobytes() == values.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=30), st.sampled_from([(), (3,), (4, 5), (0, 2), (2, 3, 2, 2)]))
def test_bytes_at_random_are_read_or_refused(plain: bytes, coded: bytes, shape: tuple[int, ...]) -> None:
    size = 4 * int(np.prod(shape, dtype=int))
    reader = TensorReader.begin(plain, coded, size)
    with suppress(ArtifactError):
        assert len(reader.read("F32", shape, size)) == size


def test_more_than_was_allowed_is_not_made_room_for() -> None:
    writer = TensorWriter.begin()
    writer.write(np.zeros(8, np.float32).tobytes(), "F32", (8,))
    reader = TensorReader.begin(writer.plain.finish(), writer.coder.finish(), 31)
    with pytest.raises(ArtifactError, match="larger than it says"):
        reader.read("F32", (8,), 32)
