"""From a model section to a torch module, and to disk and back without pickle."""

import importlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.errors import ArtifactError, SpecError
from jobs.models import modules
from jobs.models.blocks import Block, Residual, every_layer
from jobs.models.huggingface import HuggingFaceModule, build_hugging_face
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
)
from jobs.models.registry import blocks_of
from jobs.models.sequences import (
    Attention,
    CodeEmbedding,
    Embedding,
    Interactions,
    LastStep,
    LayerNorm,
    Lstm,
    MeanSteps,
    Positions,
    SequenceInput,
    TokenInput,
)
from jobs.models.structure import drop_blocks, factorize, take_widths
from jobs.records import Signature
from jobs.section import Record
from jobs.spec.model import FactoryModel, ForeignModel, HuggingFaceModel, Model, OwnModel
from jobs.storage import atomic_path, read_json, write_json

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def build(model: OwnModel | ForeignModel, signature: Signature, seed: int) -> nn.Module:
    """A freshly initialized module: (batch, *input_shape) → (batch, *output_shape) logits or values.

    Our own families are an nn.Sequential of named blocks. The initialization is a function of `seed` alone; the
    process's own random state is left as it was. Raises SpecError for a model that does not fit the data.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match model:
            case FactoryModel():
                return call_factory(model, signature)
            case HuggingFaceModel():
                return build_hugging_face(model.args, signature)
            case _:
                return _assemble(blocks_of(model, signature))


def _assemble(blocks: tuple[Block, ...]) -> nn.Sequential:
    numbers = itertools.count()  # tell the dropouts apart
    over_steps = isinstance(blocks[0].layers[0], TokenInput | SequenceInput)
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for block in blocks:
        layers = [_module(layer, numbers, over_steps) for layer in block.layers]
        last = block is blocks[-1]
        named[block.name] = modules.SequenceBlock(*layers, last=last) if over_steps else nn.Sequential(*layers)
    whole = nn.Sequential(named)
    if any(isinstance(layer, Linear) and layer.tied for layer in every_layer(blocks[-1].layers)):
        embedding = next(layer for layer in whole.modules() if isinstance(layer, nn.Embedding))
        classifier = list(whole.modules())[-1]
        classifier.weight = embedding.weight
    return whole


def _module(layer: Layer, numbers: Iterator[int], over_steps: bool) -> nn.Module:
    """The torch module of a layer; it has the layer's `split`, for layers that have one."""
    module = _plain_module(layer, numbers, over_steps)
    if hasattr(layer, "split"):
        module.split = layer.split
    return module


def _plain_module(layer: Layer, numbers: Iterator[int], over_steps: bool) -> nn.Module:
    match layer:
        case Conv():
            kernel, padding = layer.kernel, layer.kernel // 2
            return nn.Conv2d(layer.inputs, layer.outputs, kernel, stride=layer.stride, padding=padding, bias=layer.bias)
        case Linear():
            return _begin(nn.Linear(layer.inputs, layer.outputs, bias=layer.bias), layer.std)
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
        case MaxPool():
            return nn.MaxPool2d(2)
        case Flatten():
            return nn.Flatten()
        case Residual(body, shortcut):
            arms = [nn.Sequential(*(_module(part, numbers, over_steps) for part in arm)) for arm in (body, shortcut)]
            return modules.ResidualOverSteps(arms[0]) if over_steps else modules.Residual(*arms)
        case TokenInput():
            return modules.TokenInput()
        case SequenceInput():
            return modules.SequenceInput()
        case Embedding(rows, width, std):
            return _begin(nn.Embedding(rows, width), std)
        case CodeEmbedding(tables):
            return modules.CodeEmbedding(_module(table, numbers, over_steps) for table in tables)
        case Interactions():
            return modules.Interactions()
        case Positions(length, width, std):
            return _begin(modules.Positions(length, width), std)
        case LayerNorm(width):
            return nn.LayerNorm(width)
        case Attention():
            attention = modules.Attention(layer.width, layer.heads, layer.causal)
            for part in (attention.query, attention.key, attention.value):
                _begin(part, layer.std)
            _begin(attention.output, layer.output_std)
            return attention
        case Lstm(inputs, hidden):
            return modules.Lstm(inputs, hidden)
        case MeanSteps():
            return modules.MeanSteps()
        case LastStep():
            return modules.LastStep()
    raise TypeError(f"no module is known for {layer}")


def _begin(module: nn.Module, std: float | None) -> nn.Module:
    """Weights from N(0, std²) and biases of 0; None leaves torch's own."""
    if std is not None:
        nn.init.normal_(module.weight, std=std)  # type: ignore[arg-type]
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return module


def call_factory(model: FactoryModel, signature: Signature) -> nn.Module:
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
        codes = {"num_codes": signature.num_codes} if signature.num_codes else {}
        built = factory(input_shape=signature.input_shape, outputs=signature.outputs, **codes, **model.args)
    except TypeError as error:
        raise SpecError.at("model.args", f"{model.name} does not take these arguments: {error}", model.args) from error
    if not isinstance(built, nn.Module):
        raise SpecError.at(
            "model.name", f"{model.name} returned a {type(built).__name__}, not a torch.nn.Module", model.name
        )
    return built


MODEL_FILE, RECIPE_FILE = "model.safetensors", "model.json"


class StoredRecipe(Record):
    """What model.json holds."""

    model: Model
    signature: Signature
    pruned: bool = False
    dropped: tuple[str, ...] = ()
    """Blocks that pruning left out."""
    low_rank: dict[str, int] = Field(default={})
    """Layers that are two thin ones, and their rank."""


def shared_tensors(module: nn.Module) -> dict[str, str]:
    """The names of parameters that are another one, by that other's (first) name."""
    first: dict[nn.Parameter, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: known for name, parameter in named if (known := first.setdefault(parameter, name)) != name}


def save_model(module: nn.Module, recipe: dict[str, Any], folder: Path, *, durable: bool = True) -> None:
    """Writes the tensors (safetensors) and the recipe that rebuilds the module around them (JSON).

    A tensor that has several names is stored under the first.

    `recipe` holds `model` (the spec's section) and `signature`; of a compressed model what else `StoredRecipe` names.
    `durable` is that of `jobs.storage.atomic_path`.
    """
    shared = shared_tensors(module)
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
        if name not in shared
    }
    with atomic_path(folder / MODEL_FILE, durable=durable) as temporary:
        save_file(tensors, temporary)
    if isinstance(module, HuggingFaceModule):
        recipe = recipe | {"model": module.section()}  # what came from a folder must not need it again
    write_json(folder / RECIPE_FILE, recipe, durable=durable)


def load_model(folder: Path) -> nn.Module:
    """Rebuilds a saved module, compressed ones too: the dense one is built, then takes the stored structure and widths.

    Raises ArtifactError if files are missing, damaged, or do not belong together.
    """
    recipe = read_recipe(folder)
    try:
        tensors = load_file(folder / MODEL_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{folder} holds no readable model: {error}") from error
    module = build_stored(recipe, folder)
    shared = take_shapes(module, tensors, folder)
    module.load_state_dict(tensors | {name: tensors[first] for name, first in shared.items()})
    return module


def read_recipe(folder: Path) -> StoredRecipe:
    """Of a stored model. Raises ArtifactError if it is missing or damaged."""
    try:
        return StoredRecipe.from_json(read_json(folder / RECIPE_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder} holds no readable model: {error}") from error


def build_stored(recipe: StoredRecipe, folder: Path) -> nn.Module:
    """The module of a recipe: its blocks and layers, as wide as they were before any pruning.

    Raises ArtifactError if the recipe describes none.
    """
    try:
        module = build(recipe.model, recipe.signature, seed=0)
    except SpecError as error:
        if isinstance(recipe.model, ForeignModel):
            raise  # the user's modules, or a library, may be what is missing
        raise ArtifactError(f"{folder}: {RECIPE_FILE} describes no model: {error}") from error
    try:
        drop_blocks(module, recipe.dropped)
        for name, rank in recipe.low_rank.items():
            factorize(module, name, rank)
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: {RECIPE_FILE} names layers that the model has not: {error}") from error
    return module


def take_shapes(module: nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, str]:
    """Gives a module's tensors the shapes of the stored ones, and ties those that are one again.

    Returns what `shared_tensors` does. Raises ArtifactError if the tensors are not those of the module.
    """
    shared = shared_tensors(module)
    missing = (set(module.state_dict()) - set(shared)).symmetric_difference(tensors)
    if missing:
        raise ArtifactError(f"{folder}: the tensors do not fit the model: {', '.join(sorted(missing)[:5])}")
    take_widths(module, tensors)
    _tie(module, shared)
    return shared


def _tie(module: nn.Module, shared: dict[str, str]) -> None:
    for name, first in shared.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, module.get_parameter(first))
