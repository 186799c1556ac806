"""A stored model whose tensors are read piece by piece, so that nobody who needs a part of it holds the whole."""

from math import gcd
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from jobs.errors import ArtifactError
from jobs.models.build import MODEL_FILE, build_stored, read_recipe, take_shapes
from jobs.models.modules import Attention
from jobs.spec.model import ForeignModel


class StoredModel:
    """The files of a stored model.

    Attributes:
        recipe: what it is.
        shapes: of all its tensors, by name.

    Raises ArtifactError if a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = read_recipe(folder)
        try:
            self._file = safe_open(folder / MODEL_FILE, framework="pt")
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118 - no dictionary
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{folder} holds no readable model: {error}") from error

    def skeleton(self) -> nn.Module:
        """The module, its widths those that are stored, without values: on torch's device `meta`.

        Where the model is not ours, what its constructor computes is unknown: it is built whole, with values that
        mean nothing. Raises ArtifactError if the tensors do not fit it.
        """
        if isinstance(self.recipe.model, ForeignModel):
            module = build_stored(self.recipe, self.folder)
        else:
            with torch.device("meta"):
                module = build_stored(self.recipe, self.folder)
        empty = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        take_shapes(module, empty, self.folder)
        return module

    def read(self, name: str, dim: int | None = None, first: int = 0, last: int = 0) -> torch.Tensor:
        """A tensor, or of it what lies from `first` up to `last` along `dim`. Raises ArtifactError."""
        try:
            places: tuple[Any, ...] = () if dim is None else (*[slice(None)] * dim, slice(first, last))
            # A view of the mapped file comes back, which keeps the whole tensor mapped: of it the part alone is copied.
            view = self._file.get_slice(name)[places] if places else self._file.get_tensor(name)
            return view.clone(memory_format=torch.contiguous_format)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{self.folder}: the tensor {name} can't be read: {error}") from error


def tensor_width(module: nn.Module) -> int:
    """What a tensor degree must divide: the greatest common divisor of all widths that are divided; 0 without any."""
    widths: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, Attention):
            widths.add(layer.query.out_features // layer.head_width)
        widths |= _widths(layer, getattr(layer, "split", None))
    return gcd(*widths)


def _widths(layer: nn.Module, how: str | None) -> set[int]:
    match layer, how:
        case _, None:
            return set()
        case nn.Linear(), "row":
            return {layer.in_features}
        case nn.Linear(), _:
            return {layer.out_features}
        case nn.Conv2d(), "row":
            return {layer.in_channels}
        case nn.Conv2d(), _:
            return {layer.out_channels}
        case nn.Embedding(), _:
            return {layer.num_embeddings}
        case nn.GroupNorm(), _:
            return {layer.num_groups}
        case ((nn.BatchNorm1d() | nn.BatchNorm2d()), _):
            return {layer.num_features}
    return set()  # dropout
