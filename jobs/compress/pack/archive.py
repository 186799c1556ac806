"""A model's files as one pack, and back, every bit.

A pack restores `model.onnx`, `model.safetensors` and `model.json`. The tensors are stored once, and both files get
theirs from there. See docs/pack.md.
"""

import hashlib
from pathlib import Path

from jobs.compress.pack import stored
from jobs.compress.pack.container import LARGEST, Sections, read_container, write_container
from jobs.compress.pack.protobuf import initializer_values
from jobs.compress.pack.streams import ByteReader, ByteWriter
from jobs.compress.pack.tensors import TensorReader, TensorWriter
from jobs.compress.pack.weights import LEAST, Tensors, read_values, write_values
from jobs.errors import ArtifactError
from jobs.storage import atomic_path

ONNX, STORED, RECIPE = "model.onnx", "model.safetensors", "model.json"
FILES = (STORED, RECIPE, ONNX)
"""What a pack restores, in the order in which the digest takes them. No name comes from a pack."""


def pack_files(contents: dict[str, bytes]) -> bytes:
    """One pack of the three files of a model, by name. It is restored, and compared, before it is returned.

    Raises ArtifactError if a file is damaged, or they are too large.
    """
    if sum(map(len, contents.values())) > LARGEST:
        raise ArtifactError(f"the model's files have more than {LARGEST} bytes together: a pack takes no more")
    header, data = stored.split(contents[STORED])
    slots = stored.slots(header)
    if sum(slot.size for slot in slots) != len(data):
        raise ArtifactError("the safetensors file is damaged: its tensors are not as long as its data")
    writer = TensorWriter.begin()
    tensors = Tensors(slots, [data[slot.start : slot.end] for slot in slots])
    for slot, content in zip(slots, tensors.contents, strict=True):
        writer.write(content, slot.dtype, slot.shape)
    graph, onnx = bytearray(), contents[ONNX]
    cut = [values for values in initializer_values(onnx) if values.end - values.start >= LEAST]
    writer.plain.varint(len(cut))
    at = 0
    for values in cut:
        writer.plain.varint(values.start - at)
        write_values(writer, tensors, values, onnx[values.start : values.end])
        graph += onnx[at : values.start]
        at = values.end
    graph += onnx[at:]
    text = ByteWriter()
    for part in (contents[RECIPE], header):
        text.varint(len(part))
        text.put(part)
    text.put(bytes(graph))
    packed = write_container(
        Sections(
            text=text.finish(),
            plain=writer.plain.finish(),
            coded=writer.coder.finish(),
            digest=_digest(contents),
            data_size=len(data),
            onnx_size=len(onnx),
        )
    )
    if restore(packed) != {name: contents[name] for name in FILES}:
        raise ArtifactError("the pack does not restore the model's files")
    return packed


def restore(packed: bytes) -> dict[str, bytes]:
    """The files of a pack, by name. Raises ArtifactError if it is damaged, of a newer format, or no pack."""
    sections = read_container(packed)
    text = ByteReader(sections.text)
    recipe = text.take(text.varint())
    header = text.take(text.varint())
    graph = ByteReader(text.take(text.left))
    slots = stored.slots(header)
    if (slots[-1].end if slots else 0) != sections.data_size:
        raise ArtifactError("the pack is damaged: its tensors are not as large as it says")
    reader = TensorReader.begin(sections.plain, sections.coded, sections.data_size + sections.onnx_size)
    tensors = Tensors(slots, [reader.read(slot.dtype, slot.shape, slot.size) for slot in slots])
    onnx = bytearray()
    for _ in range(reader.plain.varint()):
        onnx += graph.take(reader.plain.varint())
        onnx += read_values(reader, tensors)
        if len(onnx) > sections.onnx_size:
            raise ArtifactError("the pack is damaged: its graph is larger than it says")
    onnx += graph.take(graph.left)
    data = b"".join(tensors.contents)
    contents = {STORED: len(header).to_bytes(8, "little") + header + data, RECIPE: recipe, ONNX: bytes(onnx)}
    if len(onnx) != sections.onnx_size or reader.plain.left or _digest(contents) != sections.digest:
        raise ArtifactError("the pack is damaged: what it restores is not what went in")
    return contents


def unpack(path: Path, folder: Path) -> dict[str, Path]:
    """Writes the files of a pack to a folder; nothing unless all of it is whole. Returns their paths by name.

    Raises ArtifactError as `restore` does, and if the pack can't be read.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror}") from error
    try:
        contents = restore(packed)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    return {name: folder / name for name in FILES}


def _digest(contents: dict[str, bytes]) -> bytes:
    whole = hashlib.sha256()
    for name in FILES:
        whole.update(hashlib.sha256(contents[name]).digest())
    return whole.digest()
