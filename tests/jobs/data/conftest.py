"""Small sources of every kind, written to a temporary folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sources import CSV_HEADER, MakeData, OpenDataset, write_idx
from small_texts import PROSE, REVIEWS

from jobs.data import Dataset, prepare
from jobs.spec.data import Data


@pytest.fixture
def make_data() -> MakeData:
    """make_data(kind, path, …source keys, data={…other keys of `data`})."""

    def make(kind: str, path: Path | None = None, *, data: dict[str, Any] | None = None, **source: Any) -> Data:
        place = {} if path is None else {"path": str(path)}
        return Data.model_validate({"source": {"kind": kind, **place, **source}, **(data or {})})

    return make


@pytest.fixture
def open_dataset(tmp_path: Path) -> OpenDataset:
    """Prepares a data set in a new folder, and opens it."""

    def open_(data: Data, loss: str = "cross_entropy") -> Dataset:
        folder = tmp_path / f"prepared-{len(list(tmp_path.glob('prepared-*')))}"
        prepare(data, loss, folder)
        return Dataset.open(folder)

    return open_


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 6, 5), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return (np.arange(60) % 3).astype(np.uint8)


@pytest.fixture
def idx_folder(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """40 training and 20 test images of 6 x 5 pixels in 3 classes, plain."""
    folder = tmp_path / "idx"
    write_idx(folder, "train-images-idx3-ubyte", images[:40])
    write_idx(folder, "train-labels-idx1-ubyte", labels[:40])
    write_idx(folder, "t10k-images-idx3-ubyte", images[40:])
    write_idx(folder, "t10k-labels-idx1-ubyte", labels[40:])
    return folder


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    """60 rows: two numeric columns, one of them with missing values, and two categorical ones."""
    path = tmp_path / "people.csv"
    cities = ("Oslo", "Bergen", "", "Tromsø")
    incomes = ["NA" if i % 5 == 0 else str(1000.5 * i) for i in range(60)]
    rows = [f"{20 + i},{cities[i % 4]},{i % 2 == 0},{incomes[i]},{'yes' if i % 3 else 'no'}" for i in range(60)]
    path.write_text("\n".join([CSV_HEADER, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
    return path
