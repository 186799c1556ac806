"""Small real data sets that scikit-learn ships. Their facts are constants, so that planning need not import it."""

from pathlib import Path

import numpy as np

from jobs.data.raw import Columns
from jobs.data.sources.source import ColumnNames, Contents, Outline, Samples
from jobs.data.targets import Target
from jobs.spec.data import BuiltinSource

_DIGITS_COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_BREAST_CANCER_COUNTS = (212, 357)
_BREAST_CANCER_NAMES = ("malignant", "benign")
_DIABETES_SAMPLES = 442
_DIGITS_MAX = 16.0


class Builtin:
    def __init__(self, source: BuiltinSource) -> None:
        self.name = source.name

    def files(self) -> dict[str, Path]:
        return {}  # the name says it all

    def outline(self) -> Outline:
        """The targets stand in label order here, not in that of the samples."""
        if self.name == "digits":
            return Outline((1, 8, 8), self._target(np.repeat(np.arange(10), _DIGITS_COUNTS)))
        if self.name == "breast_cancer":
            return Outline((30,), self._target(np.repeat(np.arange(2), _BREAST_CANCER_COUNTS)))
        return Outline((10,), self._target(np.zeros(_DIABETES_SAMPLES)))

    def read(self) -> Contents:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{self.name}")()
        target = self._target(bunch.target)
        if self.name == "digits":
            images = bunch.images.astype(np.uint8)[:, None]
            return Contents(Samples(images, target), max_value=_DIGITS_MAX)
        numeric = bunch.data.astype(np.float32)
        columns = Columns(numeric, np.zeros((len(numeric), 0), np.int32))
        return Contents(Samples(columns, target), columns=ColumnNames(tuple(map(str, bunch.feature_names))))

    def _target(self, values: np.ndarray) -> Target:
        names = _BREAST_CANCER_NAMES if self.name == "breast_cancer" else None
        return Target(values, names, continuous=self.name == "diabetes", path="data.source.name")
