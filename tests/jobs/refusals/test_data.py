"""Files that are no data are refused, at the path."""

import gzip
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import data
from jobs.errors import DataError
from jobs.spec import JobSpec
from tests.jobs.refusals.refused import check, spec_with


def idx(array: np.ndarray, magic: int) -> bytes:
    return magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def idx_folder(folder: Path) -> dict[str, Any]:
    """A good folder of 40 images; each case then damages a file of it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(idx(rng.integers(0, 256, (40, 8, 8), np.uint8), 0x803))
    )
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((np.arange(40) % 4).astype(np.uint8), 0x801)))
    return {"data.source": {"kind": "idx", "path": str(folder)}}


def truncated_gzip(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-200])
    return values


def wrong_magic(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((40, 8, 8), np.uint8), 0x804)))
    return values


def missing_file(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    return values


def missing_folder(folder: Path) -> dict[str, Any]:
    idx_folder(folder)
    return {"data.source": {"kind": "idx", "path": str(folder)[:-1]}}


def table(text: str, **values: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "table.csv").write_text(text)
        source = {"kind": "csv", "path": str(folder / "table.csv")}
        return {"data.source": source, "data.target": "label", "model.name": "mlp"} | values

    return make


def rows(label: Callable[[int], str], extra: Callable[[int], str] = lambda i: "") -> str:
    return "age,label\n" + "".join(f"{i},{label(i)}{extra(i)}\n" for i in range(60))


def archive(**arrays: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        np.savez(folder / "data.npz", **arrays)
        return {"data.source": {"kind": "npz", "path": str(folder / "data.npz")}, "model.name": "mlp"}

    return make


def truncated_archive(folder: Path) -> dict[str, Any]:
    values = archive(x=np.zeros((60, 3), np.float32), y=np.arange(60) % 2)(folder)
    path = folder / "data.npz"
    path.write_bytes(path.read_bytes()[:-40])
    return values


def image_folder(damage: Callable[[Path], None]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        buffer = BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
        for index in range(40):
            path = folder / ("cat" if index % 2 else "dog") / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        damage(folder)
        return {"data.source": {"kind": "image_folder", "path": str(folder)}}

    return make


def no_image(folder: Path) -> None:
    (folder / "cat" / "03.png").write_bytes(b"no image")


def half_an_image(folder: Path) -> None:
    path = folder / "cat" / "03.png"
    path.write_bytes(path.read_bytes()[:-30])


def other_size(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "cat" / "03.png")


def text(content: bytes, **source: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "prose.txt").write_bytes(content)
        path = str(folder / "prose.txt")
        return {"data.source": {"kind": "text", "path": path, **source}, "model": {"name": "transformer"}}

    return make


PATH, TARGET = "data.source.path", "data.target"
OBJECTS = np.array([{"a": 1}] * 60, dtype=object)
DATA: dict[str, tuple[Callable[[Path], dict[str, Any]], str, tuple[str, ...]]] = {
    "a truncated gzip": (truncated_gzip, PATH, ("train-images-idx3-ubyte.gz",)),
    "a wrong magic number": (wrong_magic, PATH, ("magic",)),
    "a missing file": (missing_file, PATH, ("lacks train-labels-idx1-ubyte",)),
    "a missing folder": (missing_folder, PATH, ("source", "did you mean")),
    "a path with a null": (lambda _: {"data.source": {"kind": "idx", "path": "x\0y"}}, PATH, ("x",)),
    "a misspelt target": (
        table(rows(lambda i: str(i % 2)), **{"data.target": "lable"}),
        TARGET,
        ("'lable'", "did you mean 'label'"),
    ),
    "missing targets": (table(rows(lambda i: "NA" if i == 6 else str(i % 2))), TARGET, ("1 of 60", "row 7")),
    "targets that are not finite": (
        table(rows(lambda i: "NaN" if i in (3, 5) else f"{i}.5"), **{"train.loss": "mse"}),
        TARGET,
        ("2 of 60", "row 4"),
    ),
    "text to regress on": (
        table(rows(lambda i: "yes" if i % 2 else "no"), **{"train.loss": "mse"}),
        TARGET,
        ("numeric", "'no'"),
    ),
    "one class": (table(rows(lambda i: "a")), TARGET, ("one class only", "at least 2")),
    "three classes under bce": (
        table(rows(lambda i: "abc"[i % 3]), **{"train.loss": "bce"}),
        "train.loss",
        ("3", "cross_entropy"),
    ),
    "too few samples": (table("age,label\n1,a\n2,b\n"), "data.split", ("too few", "would be empty")),
    "ragged rows": (table(rows(lambda i: str(i % 2), lambda i: ",9" if i == 30 else "")), PATH, ("table.csv",)),
    "an empty table": (table(""), PATH, ("table.csv",)),
    "a header alone": (table("age,label\n"), PATH, ("no rows",)),
    "a misspelt column to ignore": (
        table(rows(lambda i: str(i % 2)), **{"data.source.ignore": ["aeg"]}),
        "data.source.ignore",
        ("'aeg'", "did you mean 'age'"),
    ),
    "no archive": (archive(x=np.zeros((60, 3)), why=np.arange(60)), PATH, ("no array 'y'", "x and y")),
    "objects for samples": (archive(x=OBJECTS, y=np.arange(60) % 2), PATH, ("Python objects",)),
    "objects for targets": (archive(x=np.zeros((60, 3)), y=OBJECTS), PATH, ("Python objects",)),
    "samples without targets": (archive(x=np.zeros((60, 3)), y=np.arange(59) % 2), PATH, ("60", "59")),
    "infinite samples": (archive(x=np.full((60, 3), np.inf), y=np.arange(60) % 2), PATH, ("infinite",)),
    "a truncated archive": (truncated_archive, PATH, ("damaged",)),
    "a length beyond the steps": (
        archive(x=np.zeros((60, 3, 2)), lengths=np.full(60, 4), y=np.arange(60) % 2),
        PATH,
        ("4 in sample 1", "1 to 3"),
    ),
    "tokens below 0": (
        archive(x=np.full((60, 3), -1), lengths=np.full(60, 3), y=np.arange(60) % 2),
        PATH,
        ("the token -1 in sample 1",),
    ),
    "text that is not UTF-8": (text(b"abc\xff"), PATH, ("not UTF-8", "byte 3")),
    "text without a whole chunk": (text(b"word " * 20), "data.source.length", ("the train split", "got 128")),
    "augmented text": (
        lambda folder: text(b"word " * 2000, length=8)(folder) | {"data.augment": ["horizontal_flip"]},
        "data.augment",
        ("for images", "text or tokens"),
    ),
    "an image that is none": (image_folder(no_image), PATH, ("03.png", "no image")),
    "a truncated image": (image_folder(half_an_image), PATH, ("03.png", "damaged")),
    "images of two sizes": (image_folder(other_size), PATH, ("03.png", "9")),
    "a class without images": (image_folder(lambda folder: (folder / "cow").mkdir()), PATH, ("cow", "no images")),
}


def read_all(spec: JobSpec, folder: Path) -> None:
    """What a plan cannot see of the data, reading them does."""
    data.inspect(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, folder)


@pytest.mark.parametrize("case", DATA)
def test_bad_data_are_refused(case: str, tmp_path: Path) -> None:
    make, path, parts = DATA[case]
    spec = JobSpec.parse(spec_with(make(tmp_path / "source")))
    with pytest.raises(DataError) as caught:
        read_all(spec, tmp_path / "prepared")
    check(caught.value, path, parts)
    assert not (tmp_path / "prepared").exists()
