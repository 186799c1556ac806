"""A pack as a whole: it restores every bit, and what is damaged, cut short or a bomb is an ArtifactError."""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.compress.pack import FILES, container, pack_files, restore, unpack
from jobs.compress.pack.container import Sections, read_container, write_container
from jobs.compress.pack.dictionary import DICTIONARY
from jobs.compress.pack.protobuf import initializer_values
from jobs.compress.pack.stored import slots, split
from jobs.compress.pack.weights import Source
from jobs.errors import ArtifactError
from tests.jobs.compress.small_packs import small_files, small_pack

GOLDEN = Path(__file__).parent / "pack_version_1.json"


@pytest.fixture(scope="module")
def packed() -> bytes:
    return small_pack()


@pytest.mark.parametrize("seed", range(5))
def test_every_bit_comes_back(seed: int) -> None:
    files = small_files(seed)
    assert restore(pack_files(files)) == files


def test_initializers_are_said_by_the_stored_tensors(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.compress.pack import archive

    seen: list[Source] = []
    plain = archive.write_values

    def watch(writer: object, tensors: object, values: object, content: bytes) -> None:
        before = len(writer.plain.finish())  # type: ignore[attr-defined]
        plain(writer, tensors, values, content)  # type: ignore[arg-type]
        seen.append(Source(writer.plain.finish()[before]))  # type: ignore[attr-defined]

    monkeypatch.setattr(archive, "write_values", watch)
    pack_files(small_files())
    expected = [Source.SCALED, Source.SHIFTED, Source.SAME, Source.SAME, Source.OWN, Source.TRANSPOSED, Source.OWN]
    assert seen == expected


def test_a_pack_of_version_1_is_read_for_ever() -> None:
    golden = json.loads(GOLDEN.read_text())
    contents = restore(bytes.fromhex(golden["pack"]))
    assert {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()} == golden["sha256"]
    assert hashlib.sha256(DICTIONARY).hexdigest() == golden["dictionary"]


def test_what_is_unpacked_runs(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.thpack").write_bytes(packed)
    paths = unpack(tmp_path / "model.thpack", tmp_path / "out")
    assert sorted(paths) == sorted(FILES) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {name: path.read_bytes() for name, path in paths.items()} == small_files()
    session = onnxruntime.InferenceSession(paths["model.onnx"], providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": np.ones((3, 1, 5, 5), np.float32)})
    assert output.shape == (3, 5)


def test_a_pack_cut_short_anywhere_is_refused(packed: bytes) -> None:
    for length in range(len(packed)):
        with pytest.raises(ArtifactError):
            restore(packed[:length])
    with pytest.raises(ArtifactError, match="checksum"):
        restore(packed + b"\0")


def test_every_flipped_bit_is_noticed(packed: bytes) -> None:
    for at in range(len(packed)):
        for bit in range(8):
            damaged = bytearray(packed)
            damaged[at] ^= 1 << bit
            with pytest.raises(ArtifactError):
                restore(bytes(damaged))


def _signed(content: bytes) -> bytes:
    """With the checksum that its content would have: damage that was meant."""
    return content[:5] + zlib.crc32(content[9:]).to_bytes(4, "little") + content[9:]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_forged_packs_are_refused_too(data: st.DataObject) -> None:
    """Behind the checksum, every part is checked on its own; whatever is left, the digest finds."""
    packed = bytearray(PACKED)
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(41, len(packed) - 1))] = data.draw(st.integers(0, 255))
    forged = _signed(bytes(packed))
    try:
        contents = restore(forged)
    except ArtifactError:
        return
    assert contents == small_files()  # some last bits of the coder mean nothing


PACKED = small_pack()


def _of_next_version(packed: bytes) -> bytes:
    return packed[:4] + bytes([packed[4] + 1]) + packed[5:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_of_next_version, "format version 2.*upgrade"),
        (lambda packed: packed[:4] + b"\0" + packed[5:], "version 0"),
        (lambda packed: b"PK\x03\x04" + packed[4:], "no pack"),
        (lambda packed: b"", "no pack"),
        (lambda packed: packed[:30], "ends early"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[bytes], bytes], words: str, packed: bytes) -> None:
    with pytest.raises(ArtifactError, match=words):
        restore(change(packed))


@pytest.mark.parametrize(
    "changes",
    [{"data_size": 1 << 40}, {"onnx_size": 1 << 40}, {"onnx_size": 0}, {"data_size": 3}, {"digest": bytes(32)}],
)
def test_declared_sizes_are_not_believed(changes: dict[str, object], packed: bytes) -> None:
    sections = read_container(packed)
    with pytest.raises(ArtifactError):
        restore(write_container(replace(sections, **changes)))  # type: ignore[arg-type]


def test_a_bomb_is_not_set_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of zeros in a few KB: what it says that it holds is too much for its size, or not what it holds."""
    content = bytes(64 << 20)
    bomb = Sections(text=content, plain=b"", coded=b"", digest=bytes(32), data_size=0, onnx_size=0)
    honest = write_container(bomb)
    assert len(honest) < 8192
    monkeypatch.setattr(container, "LARGEST_RATIO", 100)
    with pytest.raises(ArtifactError, match="not believed"):
        read_container(honest)
    frame = container._compress(content, DICTIONARY)
    with pytest.raises(ArtifactError, match="not as long"):
        container._decompress(frame, 1000, DICTIONARY)


def test_nothing_is_written_of_a_damaged_pack(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.thpack").write_bytes(packed[:-1])
    with pytest.raises(ArtifactError, match=r"bad\.thpack"):
        unpack(tmp_path / "bad.thpack", tmp_path / "out")
    with pytest.raises(ArtifactError, match="can't be read"):
        unpack(tmp_path / "none.thpack", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_not_packed(name: str) -> None:
    files = small_files()
    if name == "model.json":
        assert restore(pack_files(files | {name: b"anything"}))[name] == b"anything"  # only carried
        return
    with pytest.raises(ArtifactError):
        pack_files(files | {name: files[name][:-3]})


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
    ],
)
def test_headers_that_do_not_fit_are_refused(header: bytes) -> None:
    with pytest.raises(ArtifactError):
        slots(header)


def test_values_are_found_in_the_bytes_of_a_graph() -> None:
    files = small_files()
    header, data = split(files["model.safetensors"])
    where = {slot.name: data[slot.start : slot.end] for slot in slots(header)}
    found = {
        values.name: files["model.onnx"][values.start : values.end]
        for values in initializer_values(files["model.onnx"])
    }
    assert found["linear.weight"] == where["linear.weight"]
    assert len(found) == 7
