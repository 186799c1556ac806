"""A stored model's skeleton holds nothing and has the stored widths; its tensors are read piece by piece."""

from math import gcd
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, made

from jobs.compress.prune import prune_structured
from jobs.errors import ArtifactError
from jobs.models.build import MODEL_FILE, save_model
from jobs.models.registry import summarize
from jobs.models.slices import StoredModel, tensor_width


def stored(family: str, folder: Path, ratio: float = 0.0) -> tuple[torch.nn.Module, StoredModel]:
    model, signature = FAMILIES[family]
    module = prune_structured(made(family), signature, ratio=ratio) if ratio else made(family)
    recipe = {"model": model.model_dump(mode="json"), "signature": signature.to_json(), "pruned": bool(ratio)}
    save_model(module, recipe, folder)
    return module, StoredModel(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_is_the_model_without_values(family: str, tmp_path: Path) -> None:
    module, found = stored(family, tmp_path)
    skeleton = found.skeleton()
    assert str(skeleton) == str(module)
    for name, value in skeleton.state_dict().items():
        assert value.device.type == "meta"
        assert value.shape == module.state_dict()[name].shape
    assert len(list(skeleton.parameters())) == len(list(module.parameters()))  # tied ones are one


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("lstm")])
def test_the_widths_are_those_that_are_planned(family: str, tmp_path: Path) -> None:
    _, found = stored(family, tmp_path)
    assert tensor_width(found.skeleton()) == summarize(*FAMILIES[family]).tensor_width


def test_a_pruned_model_has_widths_of_its_own(tmp_path: Path) -> None:
    module, found = stored("lenet", tmp_path, ratio=0.4)
    skeleton = found.skeleton()
    assert str(skeleton) == str(module)
    widths = [layer.out_features for layer in skeleton.modules() if getattr(layer, "split", None) == "column"]
    assert tensor_width(skeleton) == gcd(*widths)


def test_pieces_are_copies_of_what_is_asked_for_alone(tmp_path: Path) -> None:
    module, found = stored("transformer of tokens", tmp_path)
    for name, whole in module.state_dict().items():
        assert torch.equal(found.read(name), whole)
        for dim, size in enumerate(whole.shape):
            piece = found.read(name, dim, 1, size)
            assert torch.equal(piece, whole.narrow(dim, 1, size - 1))
            assert piece.is_contiguous()
            assert piece.untyped_storage().nbytes() == piece.nbytes


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-50]),
        lambda file: file.write_bytes(b"\x00" * 8),
        lambda file: save_file({"other": torch.zeros(3)}, file),
        lambda file: save_file(load_file(file) | {"one": torch.zeros(1)}, file),
    ],
    ids=["missing", "cut off", "zeros", "of another model", "one tensor too many"],
)
def test_damage_is_an_artifact_error(damage: Any, tmp_path: Path) -> None:
    stored("mlp", tmp_path)
    damage(tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        StoredModel(tmp_path).skeleton()
