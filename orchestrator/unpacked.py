"""The model files of an artifact, whatever form they are kept in."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.compress.pack import unpack
from jobs.requests import PACK_NAME


@contextmanager
def model_folder(folder: Path, place: Path | None = None) -> Iterator[Path]:
    """A folder with an artifact's `model.onnx`: its own; of a pack one with all that it restores, while it is used.

    Args:
        place: where a pack is restored below; default: the system's folder for temporary files.

    Raises ArtifactError if the pack is damaged.
    """
    if not (folder / PACK_NAME).is_file():
        yield folder
        return
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".thresher-unpacked-", dir=place) as name:
        restored = Path(name).absolute()
        unpack(folder / PACK_NAME, restored)
        yield restored


@contextmanager
def model_file(folder: Path) -> Iterator[Path]:
    """The ONNX file of an artifact; of a pack the one that it restores. As `model_folder`."""
    with model_folder(folder) as files:
        yield files / "model.onnx"
