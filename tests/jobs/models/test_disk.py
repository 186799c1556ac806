"""Models on disk and back: exact, without pickle, tied weights once, pruned ones at their widths."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import FAMILIES, LANGUAGE, made, samples
from torch import nn

from jobs.compress.prune import prune_structured
from jobs.errors import ArtifactError
from jobs.models.build import MODEL_FILE, RECIPE_FILE, build, load_model, save_model
from jobs.models.invariant import GROUPED
from jobs.records import Signature
from jobs.spec.load import model_section
from jobs.spec.model import LenetArgs, LenetModel, MlpArgs, MlpModel, OwnModel, ResnetArgs, ResnetModel

IMAGE = Signature(kind="image", input_shape=(1, 8, 8), outputs=4)


def recipe_of(model: OwnModel, signature: Signature) -> dict[str, Any]:
    return {"model": model.model_dump(mode="json"), "signature": signature.to_json()}


def saved(folder: Path, **args: Any) -> tuple[nn.Module, Path]:
    model = LenetModel(name="lenet", args=LenetArgs(conv_widths=(6, 8), linear_widths=(16,), kernel=3, **args))
    module = build(model, IMAGE, seed=1)
    module(torch.randn(32, 1, 8, 8))
    for layer in module.modules():
        if isinstance(layer, GROUPED):
            layer.commit(layer.take_pending())  # so that running statistics are no more the initial ones
    save_model(module, recipe_of(model, IMAGE), folder)
    return module, folder


def check_same(left: nn.Module, right: nn.Module, signature: Signature) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
        assert value.dtype == right.state_dict()[name].dtype
    x = samples(signature, [9, 3, 1])
    assert torch.equal(left.eval()(x), right.eval()(x))
    # The layers know their widths too, so that it can be pruned and exported again.
    for ours, theirs in zip(left.modules(), right.modules(), strict=True):
        assert str(ours) == str(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_exact(family: str, tmp_path: Path) -> None:
    model, signature = FAMILIES[family]
    module = made(family)
    save_model(module, recipe_of(model, signature), tmp_path)
    check_same(module, load_model(tmp_path), signature)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_running_statistics_come_back(batch_norm: bool, tmp_path: Path) -> None:
    module, folder = saved(tmp_path, batch_norm=batch_norm)
    check_same(module, load_model(folder), IMAGE)


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model, signature = FAMILIES["transformer of language"]
    save_model(made("transformer of language"), recipe_of(model, signature), tmp_path)
    assert "embedding.1.weight" in load_file(tmp_path / MODEL_FILE)
    assert "classifier.1.weight" not in load_file(tmp_path / MODEL_FILE)
    loaded = load_model(tmp_path)
    assert loaded.get_parameter("classifier.1.weight") is loaded.get_parameter("embedding.1.weight")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_pruned_model_comes_back_at_its_widths(batch_norm: bool, tmp_path: Path) -> None:
    dense, _ = saved(tmp_path / "dense", batch_norm=batch_norm)
    pruned = prune_structured(dense, IMAGE, ratio=0.5)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.parameters())
    save_model(
        pruned, json.loads((tmp_path / "dense" / RECIPE_FILE).read_text()) | {"pruned": True}, tmp_path / "pruned"
    )
    check_same(pruned, load_model(tmp_path / "pruned"), IMAGE)


@pytest.mark.parametrize("family", ["recommender", "transformer of language"])
def test_other_families_come_back_pruned(family: str, tmp_path: Path) -> None:
    model, signature = FAMILIES[family]
    pruned = prune_structured(made(family), signature, ratio=0.5)
    save_model(pruned, recipe_of(model, signature) | {"pruned": True}, tmp_path)
    loaded = load_model(tmp_path)
    check_same(pruned, loaded, signature)
    if signature == LANGUAGE:
        assert loaded.get_parameter("classifier.1.weight") is loaded.get_parameter("embedding.1.weight")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_pruned_resnet_comes_back(norm: Any, tmp_path: Path) -> None:
    model = ResnetModel(name="resnet", args=ResnetArgs(depth=8, width=16, norm=norm))
    signature = Signature(kind="image", input_shape=(3, 16, 16), outputs=5)
    dense = build(model, signature, seed=1).eval()
    pruned = prune_structured(dense, signature, ratio=0.5, round_to=8)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (dense, pruned)]
    assert sizes[1] < 0.5 * sizes[0]
    save_model(pruned, recipe_of(model, signature) | {"pruned": True}, tmp_path)
    check_same(pruned, load_model(tmp_path), signature)


def test_a_model_is_no_pickle(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    assert {path.name for path in folder.iterdir()} == {MODEL_FILE, RECIPE_FILE}
    header = (folder / MODEL_FILE).read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MODEL_FILE).unlink(),
        lambda folder: (folder / RECIPE_FILE).unlink(),
        lambda folder: (folder / MODEL_FILE).write_bytes((folder / MODEL_FILE).read_bytes()[:-100]),
        lambda folder: (folder / MODEL_FILE).write_bytes(b""),
        lambda folder: (folder / MODEL_FILE).write_bytes(b"\xff" * 64),
        lambda folder: (folder / RECIPE_FILE).write_text("{"),
        lambda folder: (folder / RECIPE_FILE).write_text("[]"),
        lambda folder: (folder / RECIPE_FILE).write_text("{}"),
        lambda folder: (folder / RECIPE_FILE).write_bytes(b"\xff"),
        lambda folder: edit(folder, signature=IMAGE.to_json() | {"outputs": "four"}),
        lambda folder: edit(folder, signature=IMAGE.to_json() | {"kind": "vector", "input_shape": [30]}),
        lambda folder: edit(folder, signature=None),
        lambda folder: edit(folder, model={"name": "lenett"}),
        lambda folder: edit(folder, model={"name": "mlp"}),
        lambda folder: edit(folder, model={"name": "lenet", "args": {"conv_widths": [6, 8, 9]}}),
    ],
)
def test_damage_is_an_artifact_error(damage: Any, tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(ArtifactError, match=str(folder)):
        load_model(folder)


def test_sections_of_the_spec_alone_can_be_read() -> None:
    assert model_section({"name": "mlp", "args": {"hidden": [3]}}) == MlpModel(name="mlp", args=MlpArgs(hidden=(3,)))


def edit(folder: Path, **values: Any) -> None:
    path = folder / RECIPE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
