"""Ways to write small sources, and the types of the fixtures."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jobs.data import Dataset
from jobs.spec.data import Data

MakeData = Callable[..., Data]
OpenDataset = Callable[..., Dataset]
CSV_HEADER = "age,city,member,income,label"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, name: str, array: np.ndarray, *, compress: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    return path
