"""A prepared data set, memory-mapped: what training, measuring and calibration read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.data.arrow import open_arrays
from jobs.data.encoding import Encoded, Encoding, make_encoding
from jobs.data.manifest import Manifest, check_contents, file_name, read_manifest
from jobs.data.order import Ids
from jobs.data.raw import Array, Columns, Raw, take
from jobs.data.split import SPLITS
from jobs.data.statistics import ImageStatistics
from jobs.errors import DataError
from jobs.records import DatasetInfo


@dataclass(frozen=True)
class _Samples:
    x: Raw
    y: Array


class Dataset:
    """Samples by split ("train", "validation", "test") and id (0 … num_samples-1), straight from the memory map.

    dataset = Dataset.open(folder)
    x = dataset.encoded("validation", np.arange(64), dataset.encoding("standardize"))
    """

    def __init__(self, folder: Path, manifest: Manifest, samples: dict[str, _Samples]) -> None:
        self.folder = folder
        self._manifest = manifest
        self._samples = samples

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Maps a folder made by prepare. Raises DataError where it is incomplete, or does not fit together."""
        manifest = read_manifest(folder)
        return cls(folder, manifest, {split: _open_split(folder, split, manifest) for split in SPLITS})

    def verify(self) -> None:
        """Reads all files and compares them to their digests. Raises DataError."""
        check_contents(self.folder, self._manifest)

    @property
    def info(self) -> DatasetInfo:
        return self._manifest.info

    @property
    def fingerprint(self) -> str:
        return self._manifest.fingerprint

    @property
    def class_counts(self) -> npt.NDArray[np.int64]:
        """Training samples of each class, in label order; empty for regression."""
        return np.array(self._manifest.class_counts, np.int64)

    @property
    def calibration_ids(self) -> Ids:
        """Ids in the training split that quantization is calibrated with."""
        return np.array(self._manifest.calibration_ids, np.int64)

    def num_samples(self, split: str) -> int:
        return len(self._samples[split].y)

    def targets(self, split: str) -> Array:
        """int64 labels, or float32 values: (samples,), read-only."""
        return self._samples[split].y

    def encoding(self, normalize: str) -> Encoding:
        """How raw samples become model input under `data.normalize`, from the training split's statistics."""
        return make_encoding(self._manifest.statistics, normalize)

    def raw(self, split: str, ids: Array) -> Raw:
        """The samples with these ids: (ids, channels, height, width) pixels, or Columns."""
        return take(self._samples[split].x, ids)

    def encoded(self, split: str, ids: Array, encoding: Encoding) -> Encoded:
        """float32 (ids, *input_shape), without augmentation."""
        return encoding.encode(self.raw(split, ids))


def _open_split(folder: Path, split: str, manifest: Manifest) -> _Samples:
    path = folder / file_name(split)
    arrays = open_arrays(path)
    num_samples = manifest.info.num_samples[split]
    expected = _expected_arrays(manifest)
    found = {name: (array.dtype.name, array.shape[1:]) for name, array in arrays.items()}
    if found != expected or any(len(array) != num_samples for array in arrays.values()):
        raise DataError.at("", f"{path} is damaged: it does not hold what dataset.json says")
    y = arrays["y"]
    classes = len(manifest.info.classes)
    if classes and not (y.min() >= 0 and y.max() < classes):
        raise DataError.at("", f"{path} is damaged: labels outside of 0 to {classes - 1}")
    if isinstance(manifest.statistics, ImageStatistics):
        return _Samples(arrays["x"].reshape(num_samples, *manifest.statistics.shape), y)
    columns = Columns(
        arrays.get("numeric", np.zeros((num_samples, 0), np.float32)),
        arrays.get("categorical", np.zeros((num_samples, 0), np.int32)),
    )
    return _Samples(columns, y)


def _expected_arrays(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a sample in each array of a split's file."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"y": ("int64" if manifest.info.classes else "float32", ())}
    statistics = manifest.statistics
    if isinstance(statistics, ImageStatistics):
        return {**expected, "x": (statistics.dtype, (int(np.prod(statistics.shape)),))}
    if statistics.numeric:
        expected["numeric"] = ("float32", (len(statistics.numeric),))
    if statistics.categorical:
        expected["categorical"] = ("int32", (len(statistics.categorical),))
    return expected
