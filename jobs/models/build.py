"""From a model section to a torch module, and to disk and back without pickle."""

import importlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.errors import ArtifactError, SpecError
from jobs.models.invariant import GroupedBatchNorm1d, GroupedBatchNorm2d, SampleDropout
from jobs.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    Layer,
    Linear,
    MaxPool,
    Residual,
    Shape,
)
from jobs.models.registry import blocks_of
from jobs.section import Record
from jobs.spec.model import FactoryModel, Model, OwnModel
from jobs.storage import atomic_path, read_json, write_json

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def build(model: OwnModel | FactoryModel, input_shape: Shape, outputs: int, seed: int) -> nn.Module:
    """A freshly initialized module: (batch, *input_shape) float32 → (batch, outputs) logits or values.

    The initialization is a function of `seed` alone; the process's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(model, FactoryModel):
            return call_factory(model, input_shape, outputs)
        numbers = itertools.count()  # tell the dropouts apart
        blocks: OrderedDict[str, nn.Module] = OrderedDict(
            (block.name, _sequence(block.layers, numbers)) for block in blocks_of(model, input_shape, outputs)
        )
        return nn.Sequential(blocks)


class ResidualModule(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


def _sequence(layers: tuple[Layer, ...], numbers: Iterator[int]) -> nn.Sequential:
    return nn.Sequential(*(_module(layer, numbers) for layer in layers))


def _module(layer: Layer, numbers: Iterator[int]) -> nn.Module:
    match layer:
        case Conv(inputs, outputs, kernel, bias, stride):
            return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)
        case Linear(inputs, outputs, bias):
            return nn.Linear(inputs, outputs, bias=bias)
        case BatchNorm(width, group, spatial):
            return GroupedBatchNorm2d(width, group) if spatial else GroupedBatchNorm1d(width, group)
        case Activation(name):
            return _ACTIVATIONS[name]()
        case Dropout(p):
            return SampleDropout(p, next(numbers))
        case GroupNorm(width, groups):
            return nn.GroupNorm(groups, width)
        case GlobalAveragePool():
            return nn.AdaptiveAvgPool2d(1)
        case Residual(body, shortcut):
            return ResidualModule(_sequence(body, numbers), _sequence(shortcut, numbers))
        case MaxPool():
            return nn.MaxPool2d(2)
        case Flatten():
            return nn.Flatten()


def call_factory(model: FactoryModel, input_shape: Shape, outputs: int) -> nn.Module:
    """Calls the user's `package.module:function`. Raises SpecError naming what went wrong."""
    module_name, _, function_name = model.name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpecError.at(
            "model.name",
            f"cannot import {module_name}: {error}",
            model.name,
            "a module below code.working_dir, or an installed package",
        ) from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise SpecError.at("model.name", f"{module_name} has no function {function_name}", model.name)
    try:
        built = factory(input_shape=input_shape, outputs=outputs, **model.args)
    except TypeError as error:
        raise SpecError.at("model.args", f"{model.name} does not take these arguments: {error}", model.args) from error
    if not isinstance(built, nn.Module):
        raise SpecError.at(
            "model.name", f"{model.name} returned a {type(built).__name__}, not a torch.nn.Module", model.name
        )
    return built


MODEL_FILE, RECIPE_FILE = "model.safetensors", "model.json"


class _Recipe(Record):
    """What model.json holds."""

    model: Model
    input_shape: tuple[int, ...]
    outputs: int
    pruned: bool = False


def save_model(module: nn.Module, recipe: dict[str, Any], folder: Path) -> None:
    """Writes the tensors (safetensors) and the recipe that rebuilds the module around them (JSON).

    `recipe` holds `model` (the spec's section), `input_shape` and `outputs`.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    with atomic_path(folder / MODEL_FILE) as temporary:
        save_file(tensors, temporary)
    write_json(folder / RECIPE_FILE, recipe)


def load_model(folder: Path) -> nn.Module:
    """Rebuilds a saved module, pruned ones too: the dense one is built, then takes the stored widths.

    Raises ArtifactError if files are missing, damaged, or do not belong together.
    """
    try:
        recipe = _Recipe.from_json(read_json(folder / RECIPE_FILE))
        tensors = load_file(folder / MODEL_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{folder} holds no readable model: {error}") from error
    try:
        module = build(recipe.model, recipe.input_shape, recipe.outputs, seed=0)
    except SpecError as error:
        if isinstance(recipe.model, FactoryModel):
            raise  # the user's modules may be what is missing
        raise ArtifactError(f"{folder}: {RECIPE_FILE} describes no model: {error}") from error
    missing = set(module.state_dict()).symmetric_difference(tensors)
    if missing:
        raise ArtifactError(f"{folder}: the tensors do not fit the model: {', '.join(sorted(missing)[:5])}")
    _take_widths(module, tensors)
    module.load_state_dict(tensors)
    return module


def _take_widths(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces parameters and buffers whose stored shape differs, and the widths that the layers remember."""
    for prefix, layer in module.named_modules():
        stored = {
            name: tensors[f"{prefix}.{name}" if prefix else name]
            for name in [
                *dict(layer.named_parameters(recurse=False)),
                *dict(layer.named_buffers(recurse=False)),
            ]
            if (f"{prefix}.{name}" if prefix else name) in tensors
        }
        changed = {name: value for name, value in stored.items() if getattr(layer, name).shape != value.shape}
        for name, value in changed.items():
            if getattr(layer, name).dim() != value.dim():
                raise ArtifactError(f"the tensor {prefix}.{name} of {tuple(value.shape)} does not fit {layer}")
            if isinstance(getattr(layer, name), nn.Parameter):
                setattr(layer, name, nn.Parameter(torch.empty_like(value)))
            else:
                setattr(layer, name, torch.empty_like(value))
        if not changed:
            continue
        match layer:
            case nn.Linear():
                layer.out_features, layer.in_features = layer.weight.shape
            case nn.Conv1d() | nn.Conv2d():
                layer.out_channels = layer.weight.shape[0]
                grouped = layer.groups > 1
                layer.groups = layer.out_channels if grouped and layer.weight.shape[1] == 1 else layer.groups
                layer.in_channels = layer.weight.shape[1] * layer.groups
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                layer.num_features = stored["running_mean"].shape[0]
            case nn.LayerNorm():
                layer.normalized_shape = tuple(layer.weight.shape)
            case nn.GroupNorm():
                layer.num_channels = layer.weight.shape[0]
            case nn.Embedding():
                layer.num_embeddings, layer.embedding_dim = layer.weight.shape
