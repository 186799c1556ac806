"""Images: pixels to floats."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from jobs.data.encodings.encoding import Encoding
from jobs.data.raw import Raw
from jobs.data.statistics import ImageStatistics


class ImageEncoding(Encoding):
    """(pixel * scale - mean) / std, channel by channel."""

    kind: Literal["image"] = "image"
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    dtype: Literal["uint8", "float32"]
    """Of raw pixels."""
    max_value: float
    """The raw pixel that counts as white."""
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: bool = False

    @model_validator(mode="after")
    def _a_value_for_each_channel(self) -> "ImageEncoding":
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError("mean and std have not one value for each channel")
        if not all(0.0 < value < float("inf") for value in (self.scale, *self.std)):
            raise ValueError("scale and std are no positive numbers")
        return self

    @property
    def signature_kind(self) -> Literal["image"]:
        return "image"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def encode(self, raw: Raw) -> npt.NDArray[np.float32]:
        assert isinstance(raw, np.ndarray)
        std = np.array(self.std)
        gain = (self.scale / std).astype(np.float32)[:, None, None]
        bias = (-np.array(self.mean) / std).astype(np.float32)[:, None, None]
        x: npt.NDArray[np.float32] = np.multiply(raw, gain, dtype=np.float32)
        x += bias
        return x


def image_encoding(statistics: ImageStatistics, normalize: str) -> ImageEncoding:
    standardize = normalize == "standardize"
    channels = statistics.shape[0]
    return ImageEncoding(
        shape=statistics.shape,
        dtype=statistics.dtype,
        max_value=statistics.max_value,
        scale=1.0 if normalize == "none" else 1.0 / statistics.max_value,
        mean=statistics.mean if standardize else (0.0,) * channels,
        std=tuple(std or 1.0 for std in statistics.std) if standardize else (1.0,) * channels,
        resize=statistics.resize,
    )
