"""Samples to predict on come out as the training data went in."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from small_sources import CSV_HEADER, MakeData, OpenDataset, write_idx

from jobs.data import Encoding, read_samples
from jobs.data.raw import Columns
from jobs.errors import DataError

PIXELS = np.random.default_rng(3).integers(0, 256, (4, 6, 5), np.uint8)


@pytest.fixture
def image_encoding(idx_folder: Path, make_data: MakeData, open_dataset: OpenDataset) -> Encoding:
    """Images of 1 x 6 x 5."""
    return open_dataset(make_data("idx", idx_folder)).encoding("standardize")


@pytest.fixture
def table_encoding(csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> Encoding:
    """age, income; city, member."""
    return open_dataset(make_data("csv", csv_file, data={"target": "label"}), "bce").encoding("standardize")


def write_png_folder(path: Path) -> None:
    path.mkdir()
    for position, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(path / f"{position}.png")


WRITERS: dict[str, Any] = {
    "t10k-images-idx3-ubyte": lambda path: write_idx(path.parent, path.name, PIXELS),
    "t10k-images-idx3-ubyte.gz": lambda path: write_idx(path.parent, path.stem, PIXELS, compress=True),
    "x.npz": lambda path: np.savez(path, x=PIXELS, y=np.zeros(4)),
    "one.npz": lambda path: np.savez(path, pictures=PIXELS[:, None]),
    "x.npy": lambda path: np.save(path, PIXELS[..., None]),
    "folder": write_png_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_images(tmp_path: Path, name: str, image_encoding: Encoding) -> None:
    (tmp_path / "in").mkdir()
    WRITERS[name](tmp_path / "in" / name)
    raw = read_samples(tmp_path / "in" / name, image_encoding)
    assert np.array_equal(raw, PIXELS[:, None])
    assert image_encoding.encode(raw).shape == (4, 1, 6, 5)


def test_one_image_in_colour(tmp_path: Path, image_encoding: Encoding) -> None:
    Image.new("RGB", (5, 6), (10, 10, 10)).save(tmp_path / "one.PNG")
    assert np.array_equal(read_samples(tmp_path / "one.PNG", image_encoding), np.full((1, 1, 6, 5), 10))


def test_white_is_white_for_digits(tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    encoding = open_dataset(make_data("builtin", name="digits")).encoding("unit")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    np.save(tmp_path / "white.npy", np.full((1, 8, 8), 16, np.uint8))
    for name in ("white.png", "white.npy"):
        assert (encoding.encode(read_samples(tmp_path / name, encoding)) == 1).all()


def test_other_sizes_are_resized_if_training_did(
    tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
) -> None:
    for name, shade in (("a", 0), ("b", 255)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (10 + i, 10), shade).save(tmp_path / "pets" / name / f"{i}.png")
    dataset = open_dataset(make_data("image_folder", tmp_path / "pets", size=[4, 4], channels=1))
    raw = read_samples(tmp_path / "pets" / "b" / "3.png", dataset.encoding("unit"))
    assert np.array_equal(raw, np.full((1, 1, 4, 4), 255))


def test_csv_columns_in_any_order(tmp_path: Path, table_encoding: Encoding) -> None:
    (tmp_path / "new.csv").write_text("more,city,income,age,member\nx,Oslo,,30,True\ny,Paris,NA,40,False\n")
    rows = read_samples(tmp_path / "new.csv", table_encoding)
    assert isinstance(rows, Columns)
    assert np.array_equal(rows.numeric, [[30, np.nan], [40, np.nan]], equal_nan=True)
    assert rows.categorical.tolist() == [[1, 1], [-1, 0]]


def test_the_training_file_itself(
    csv_file: Path, make_data: MakeData, open_dataset: OpenDataset, table_encoding: Encoding
) -> None:
    dataset = open_dataset(make_data("csv", csv_file, data={"target": "label"}), "bce")
    whole = table_encoding.encode(read_samples(csv_file, table_encoding))
    parts = [
        dataset.encoded(split, np.arange(dataset.num_samples(split)), table_encoding)
        for split in ("train", "validation", "test")
    ]
    assert sorted(map(bytes, whole)) == sorted(map(bytes, np.concatenate(parts)))


def test_parquet_rows(tmp_path: Path, table_encoding: Encoding) -> None:
    table = pa.table({"city": ["Oslo"], "member": ["True"], "age": [30], "income": [1.5]})
    parquet.write_table(table, tmp_path / "new.parquet")
    rows = read_samples(tmp_path / "new.parquet", table_encoding)
    assert isinstance(rows, Columns)
    assert (rows.numeric.tolist(), rows.categorical.tolist()) == ([[30, 1.5]], [[1, 1]])


def test_vectors(tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    encoding = open_dataset(make_data("builtin", name="diabetes"), "mse").encoding("none")
    np.save(tmp_path / "x.npy", np.arange(20.0).reshape(2, 10))
    rows = encoding.encode(read_samples(tmp_path / "x.npy", encoding))
    assert rows.tolist() == np.arange(20.0).reshape(2, 10).tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "no such file"),
        ("new.csv", CSV_HEADER.replace("city", "citty") + "\n1,a,true,2,x\n", "no such column .*mean 'citty'"),
        ("new.csv", "age,city,member,income\nold,Oslo,true,1\n", "'age' holds string"),
        ("new.csv", "age,city,member,income\n", "has no rows"),
        ("new.txt", "1 2 3", "none of the kinds that hold rows"),
        ("new.npy", "junk", "damaged or no NumPy file"),
        ("new.parquet", "junk", "damaged or no Parquet file"),
    ],
)
def test_unusable_rows(tmp_path: Path, name: str, content: str | None, message: str, table_encoding: Encoding) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path / name, table_encoding)
    assert caught.value.problems[0].path == "--data"


UNUSABLE_IMAGES: dict[str, tuple[str, Any, str]] = {
    "other size": ("a.png", lambda p: Image.new("L", (4, 4)).save(p), "4 x 4 pixels, and 6 x 5 are expected"),
    "no image": ("a.png", lambda p: p.write_bytes(b"junk"), "damaged or no image"),
    "empty folder": ("folder", lambda p: p.mkdir(), "has no images"),
    "other kind": ("a.csv", lambda p: p.write_text("1,2"), "none of the kinds that hold images"),
    "vectors": ("a.npy", lambda p: np.save(p, np.zeros((2, 30))), r"samples of \(30,\)"),
    "a number": ("a.npy", lambda p: np.save(p, np.float32(3.0)), "a single number"),
    "beyond float32": ("a.npy", lambda p: np.save(p, np.full((2, 6, 5), 1e300)), "not finite, the first in sample 1"),
    "two arrays": ("a.npz", lambda p: np.savez(p, a=PIXELS, b=PIXELS), "holds a, b"),
    "cut idx": ("a-idx3-ubyte", lambda p: p.write_bytes(b"\0\0\x08\x03"), "truncated within its header"),
}


@pytest.mark.parametrize(("name", "write", "message"), UNUSABLE_IMAGES.values(), ids=UNUSABLE_IMAGES)
def test_unusable_images(tmp_path: Path, name: str, write: Any, message: str, image_encoding: Encoding) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path / name, image_encoding)
    assert caught.value.problems[0].path == "--data"


def test_vectors_for_a_model_with_categories(tmp_path: Path, table_encoding: Encoding) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"does not hold the columns .*age, income, city, member"):
        read_samples(tmp_path / "x.npy", table_encoding)
