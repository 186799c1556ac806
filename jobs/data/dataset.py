"""A prepared data set, memory-mapped: what training, measuring and calibration read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.data.arrow import open_arrays
from jobs.data.encodings import Encoded, Encoding, make_encoding
from jobs.data.manifest import Manifest, check_contents, file_name, read_manifest
from jobs.data.order import Ids
from jobs.data.raw import Array, Raw, take
from jobs.data.split import SPLITS
from jobs.data.stored import Form, form_of, from_arrays
from jobs.data.text.samples import next_codes
from jobs.errors import DataError
from jobs.records import DatasetInfo


@dataclass(frozen=True)
class _Samples:
    x: Raw
    y: Array
    """int64 labels, float32 values, or of a language model's chunks the code that follows each."""


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
        """Training samples of each class, in label order; empty where there are no classes."""
        return np.array(self._manifest.class_counts, np.int64)

    @property
    def calibration_ids(self) -> Ids:
        """Ids in the training split that quantization is calibrated with."""
        return np.array(self._manifest.calibration_ids, np.int64)

    def num_samples(self, split: str) -> int:
        return len(self._samples[split].y)

    def targets(self, split: str, ids: Array | None = None) -> Array:
        """int64 labels or float32 values, (samples,); of a language model the next tokens, int64 (samples, steps).

        Args:
            ids: of which samples; by default all, and then labels and values are the read-only memory map.
        """
        samples = self._samples[split]
        y = samples.y if ids is None else samples.y.take(ids)
        if not self.info.per_step:
            return y
        x = samples.x if ids is None else take(samples.x, ids)
        assert isinstance(x, np.ndarray)
        return next_codes(x, y)

    def encoding(self, normalize: str) -> Encoding:
        """How raw samples become model input under `data.normalize`, from the training split's statistics."""
        return make_encoding(self._manifest.statistics, normalize)

    def raw(self, split: str, ids: Array) -> Raw:
        """The samples with these ids: pixels (ids, channels, height, width), codes of tokens (ids, steps), Columns, or
        Sequences.
        """
        return take(self._samples[split].x, ids)

    def encoded(self, split: str, ids: Array, encoding: Encoding) -> Encoded:
        """float32 or int64 (ids, *input_shape), without augmentation."""
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
    return _Samples(from_arrays(manifest.statistics, arrays, num_samples), y)


def _expected_arrays(manifest: Manifest) -> Form:
    """Type and shape of a sample in each array of a split's file."""
    targets = {"classification": "int64", "regression": "float32", "language_model": "int32"}
    return {"y": (targets[manifest.info.task], ()), **form_of(manifest.statistics)}
