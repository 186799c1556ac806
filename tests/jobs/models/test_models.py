"""Models: what is planned is what is built; disk and back; the user's own factory."""

import io
import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jobs.compress.prune import prune_structured
from jobs.errors import ArtifactError, SpecError
from jobs.export import export_onnx
from jobs.measure.session import predict
from jobs.models import factory
from jobs.models.build import MODEL_FILE, RECIPE_FILE, build, load_model, save_model
from jobs.models.factory import inspect_factory
from jobs.models.invariant import GROUPED
from jobs.models.registry import blocks_of, summarize
from jobs.records import ModelSummary
from jobs.spec.load import model_section
from jobs.spec.model import FactoryModel, LenetArgs, LenetModel, MlpArgs, MlpModel, OwnModel, ResnetArgs, ResnetModel

ACTIVATIONS = st.sampled_from(["relu", "tanh", "gelu", "silu"])
WIDTHS = st.integers(1, 9)
DROPOUTS = st.sampled_from([0.0, 0.3])
LENETS = st.builds(
    LenetArgs,
    conv_widths=st.lists(WIDTHS, min_size=1, max_size=4).map(tuple),
    linear_widths=st.lists(WIDTHS, max_size=3).map(tuple),
    kernel=st.sampled_from([3, 5]),
    activation=ACTIVATIONS,
    dropout=DROPOUTS,
    batch_norm=st.booleans(),
)
MLPS = st.builds(
    MlpArgs,
    hidden=st.lists(WIDTHS, max_size=4).map(tuple),
    activation=ACTIVATIONS,
    dropout=DROPOUTS,
    batch_norm=st.booleans(),
)
IMAGES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for one another's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """What torch itself counts in one forward pass: parameters, MACs, the values that layers put out."""
    seen = {"macs": 0, "activations": 0}

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        if not isinstance(layer, nn.Flatten | nn.Sequential):  # an empty one is the identity
            seen["activations"] += output[0].numel()
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # Every output value is a sum over the weights that lead to it.
            seen["macs"] += output[0].numel() * layer.weight[0].numel()

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    shapes = []
    x = torch.zeros(2, *input_shape)
    for block in module.eval():  # type: ignore[attr-defined]
        x = block(x)
        shapes.append(list(x.shape[1:]))
    return {"params": sum(p.numel() for p in module.parameters()), "shapes": shapes, **seen}


def check_plan(model: OwnModel, input_shape: tuple[int, ...], outputs: int) -> None:
    plan = summarize(model, input_shape, outputs)
    module = build(model, input_shape, outputs, seed=0)
    found = measured(module, input_shape)
    assert found["params"] == plan.params
    assert found["macs"] == plan.macs
    assert found["activations"] == plan.activations
    assert found["shapes"] == [block["output_shape"] for block in plan.blocks]
    assert found["shapes"][-1] == [outputs]
    assert plan.params == sum(block["params"] for block in plan.blocks)
    assert plan.layout_invariant
    assert not any(looks_at_micro_batch(layer) for layer in module.modules())
    assert plan.norm_group == max(
        (layer.group for layer in module.modules() if isinstance(layer, GROUPED)), default=None
    )


def looks_at_micro_batch(layer: nn.Module) -> bool:
    stock_norm = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(layer, GROUPED)
    return stock_norm or isinstance(layer, nn.Dropout)


class TestSizes:
    @given(LENETS, IMAGES, st.integers(1, 12))
    @settings(max_examples=20, deadline=None)
    def test_a_lenet_is_built_as_planned(self, args: LenetArgs, shape: tuple[int, ...], outputs: int) -> None:
        check_plan(LenetModel(name="lenet", args=args), shape, outputs)

    @given(MLPS, st.one_of(st.tuples(st.integers(1, 20)), IMAGES), st.integers(1, 12))
    @settings(max_examples=20, deadline=None)
    def test_an_mlp_is_built_as_planned(self, args: MlpArgs, shape: tuple[int, ...], outputs: int) -> None:
        check_plan(MlpModel(name="mlp", args=args), shape, outputs)

    @pytest.mark.parametrize("norm", ["batch", "group"])
    @pytest.mark.parametrize(
        ("depth", "shape"), [(8, (3, 32, 32)), (8, (1, 9, 7)), (20, (1, 28, 28)), (18, (3, 64, 64))]
    )
    def test_a_resnet_is_built_as_planned(self, depth: Any, norm: Any, shape: tuple[int, ...]) -> None:
        args = ResnetArgs(depth=depth, norm=norm, width=8)
        check_plan(ResnetModel(name="resnet", args=args), shape, 10)

    def test_resnets_have_the_sizes_of_the_paper(self) -> None:
        """He et al. 2016, table 6: 0.27 M parameters for 20 layers, 0.85 M for 56; table 1: 1.8 GFLOPs for 18."""

        def sizes(depth: Any, shape: tuple[int, ...], outputs: int) -> tuple[int, int]:
            plan = summarize(ResnetModel(name="resnet", args=ResnetArgs(depth=depth)), shape, outputs)
            return plan.params, plan.macs

        assert sizes(20, (3, 32, 32), 10)[0] == pytest.approx(0.27e6, rel=0.03)
        assert sizes(56, (3, 32, 32), 10)[0] == pytest.approx(0.85e6, rel=0.03)
        params, macs = sizes(18, (3, 224, 224), 1000)
        assert params == 11_689_512  # as torchvision's
        assert macs == pytest.approx(1.81e9, rel=0.01)

    def test_lenet_5_has_the_sizes_of_the_paper(self) -> None:
        """61,706 parameters and 416,520 MACs with 32×32 inputs unpadded; ours keeps the size before pooling."""
        plan = summarize(LenetModel(name="lenet"), (1, 28, 28), 10)
        conv = (6 * 25 + 6) + (16 * 6 * 25 + 16)
        linear = (16 * 7 * 7 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
        assert plan.params == conv + linear
        assert plan.macs == 6 * 25 * 784 + 16 * 150 * 196 + 784 * 120 + 120 * 84 + 84 * 10
        assert plan.layout_invariant

    def test_the_last_linear_layer_is_the_classifier(self) -> None:
        for model in (LenetModel(name="lenet"), MlpModel(name="mlp"), MlpModel(name="mlp", args=MlpArgs(hidden=()))):
            module = build(model, (1, 8, 8), 7, seed=0)
            last = [layer for layer in module.modules() if not list(layer.children())][-1]
            assert isinstance(last, nn.Linear)
            assert last.out_features == 7

    def test_lenet_refuses_tables(self) -> None:
        with pytest.raises(SpecError, match=r"model\.name.*mlp"):
            blocks_of(LenetModel(name="lenet"), (30,), 2)


class TestInitialization:
    MODEL = LenetModel(name="lenet", args=LenetArgs(conv_widths=(3,), linear_widths=(5,), batch_norm=True))

    def state(self, seed: int) -> dict[str, torch.Tensor]:
        return dict(build(self.MODEL, (1, 8, 8), 4, seed=seed).state_dict())

    def test_it_is_a_function_of_the_seed(self) -> None:
        first = self.state(3)
        torch.rand(7)
        second, other = self.state(3), self.state(4)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_the_random_state_outside_is_untouched(self) -> None:
        before = torch.get_rng_state()
        self.state(3)
        assert torch.equal(before, torch.get_rng_state())


def recipe_of(model: OwnModel, shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    return {"model": model.model_dump(mode="json"), "input_shape": list(shape), "outputs": outputs}


def saved(folder: Path, **args: Any) -> tuple[nn.Module, Path]:
    model = LenetModel(name="lenet", args=LenetArgs(conv_widths=(6, 8), linear_widths=(16,), kernel=3, **args))
    module = build(model, (1, 8, 8), 4, seed=1)
    module(torch.randn(32, 1, 8, 8))
    for layer in module.modules():
        if isinstance(layer, GROUPED):
            layer.commit(layer.take_pending())  # so that running statistics are no more the initial ones
    save_model(module, recipe_of(model, (1, 8, 8), 4), folder)
    return module, folder


def check_same(left: nn.Module, right: nn.Module) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
        assert value.dtype == right.state_dict()[name].dtype
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(left.eval()(x), right.eval()(x))


class TestDisk:
    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_there_and_back_is_exact(self, batch_norm: bool, tmp_path: Path) -> None:
        module, folder = saved(tmp_path, batch_norm=batch_norm)
        check_same(module, load_model(folder))

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_a_pruned_model_comes_back_at_its_widths(self, batch_norm: bool, tmp_path: Path) -> None:
        dense, _ = saved(tmp_path / "dense", batch_norm=batch_norm)
        pruned = prune_structured(dense, (1, 8, 8), outputs=4, ratio=0.5, round_to=1, global_pruning=False)
        assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.parameters())
        save_model(
            pruned, json.loads((tmp_path / "dense" / RECIPE_FILE).read_text()) | {"pruned": True}, tmp_path / "pruned"
        )
        loaded = load_model(tmp_path / "pruned")
        check_same(pruned, loaded)
        # The layers know their widths too, so that it can be pruned and exported again.
        for ours, theirs in zip(pruned.modules(), loaded.modules(), strict=True):
            assert str(ours) == str(theirs)

    @pytest.mark.parametrize("norm", ["batch", "group"])
    def test_a_pruned_resnet_comes_back_and_is_exported(self, norm: Any, tmp_path: Path) -> None:
        model = ResnetModel(name="resnet", args=ResnetArgs(depth=8, width=16, norm=norm))
        dense = build(model, (3, 16, 16), 5, seed=1).eval()
        pruned = prune_structured(dense, (3, 16, 16), outputs=5, ratio=0.5, round_to=8, global_pruning=False)
        sizes = [sum(p.numel() for p in module.parameters()) for module in (dense, pruned)]
        assert sizes[1] < 0.5 * sizes[0]
        save_model(pruned, recipe_of(model, (3, 16, 16), 5) | {"pruned": True}, tmp_path)
        loaded = load_model(tmp_path).eval()
        x = torch.randn(3, 3, 16, 16)
        assert torch.equal(loaded(x), pruned.eval()(x))
        export_onnx(loaded, (3, 16, 16), tmp_path / "model.onnx", {})
        torch.testing.assert_close(
            torch.from_numpy(predict(tmp_path / "model.onnx", x.numpy())), loaded(x).detach(), rtol=1e-3, atol=1e-4
        )

    def test_a_model_is_no_pickle(self, tmp_path: Path) -> None:
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
            lambda folder: edit(folder, outputs="four"),
            lambda folder: edit(folder, input_shape=[30]),
            lambda folder: edit(folder, input_shape=None),
            lambda folder: edit(folder, model={"name": "lenett"}),
            lambda folder: edit(folder, model={"name": "mlp"}),
            lambda folder: edit(folder, model={"name": "lenet", "args": {"conv_widths": [6, 8, 9]}}),
        ],
    )
    def test_damage_is_an_artifact_error(self, damage: Any, tmp_path: Path) -> None:
        _, folder = saved(tmp_path)
        damage(folder)
        with pytest.raises(ArtifactError, match=str(folder)):
            load_model(folder)

    def test_sections_of_the_spec_alone_can_be_read(self) -> None:
        assert model_section({"name": "mlp", "args": {"hidden": [3]}}) == MlpModel(
            name="mlp", args=MlpArgs(hidden=(3,))
        )


def edit(folder: Path, **values: Any) -> None:
    path = folder / RECIPE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FACTORIES = """
import sys
from torch import nn


def good(input_shape, outputs, width=4):
    print("chatter on stdout")
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], width), nn.ReLU(),
                         nn.Linear(width, outputs))


def no_module(input_shape, outputs):
    return "a model"


def wrong_shape(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], outputs + 1))


def wrong_input(input_shape, outputs):
    return nn.Linear(99, outputs)


def breaks(input_shape, outputs):
    raise RuntimeError("out of luck")


def leaves(input_shape, outputs):
    sys.exit(3)


constant = 3
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "mine.py").write_text(FACTORIES)
    (folder / "no_python.py").write_text("def (:\n")
    return folder


def look(modules: Path, cache: Path, name: str, **args: Any) -> ModelSummary:
    model = FactoryModel(name=name, args=args)
    return inspect_factory(model, (3, 2), 5, working_dir=modules, code="digest", cache=cache)


def in_this_process(command: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
    """What subprocess.run would do, without the seconds that importing torch anew takes."""
    assert command[:3] == [sys.executable, "-m", "jobs.models.factory"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["factory", *command[3:]])
        patch.setattr(sys, "path", list(sys.path))
        try:
            factory.main()
        except SystemExit as end:
            code = int(end.code or 0)
        except (RuntimeError, SyntaxError):
            traceback.print_exc(file=err)
            code = 1
        finally:
            sys.modules.pop("mine", None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


class TestFactory:
    def test_a_good_one_is_measured_and_remembered(
        self, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        summary = look(modules, tmp_path, "mine:good", width=7)
        assert summary.params == (6 * 7 + 7) + (7 * 5 + 5)
        assert summary.macs == 6 * 7 + 7 * 5
        assert not summary.layout_invariant
        assert "mine" not in sys.modules

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("asked again")

        monkeypatch.setattr(subprocess, "run", refuse)
        assert look(modules, tmp_path, "mine:good", width=7) == summary
        with pytest.raises(AssertionError, match="asked again"):
            look(modules, tmp_path, "mine:good", width=8)

    def test_one_that_is_stuck_is_not_waited_for(
        self, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.models.factory.INSPECTION_TIMEOUT_S", 0.05)
        with pytest.raises(SpecError, match=r"model\.name.*longer than"):
            look(modules, tmp_path, "mine:good")

    @pytest.mark.parametrize(
        ("name", "args", "path", "message"),
        [
            ("not_there:good", {}, "model.name", "cannot import not_there"),
            ("no_python:good", {}, "model.name", "SyntaxError"),
            ("mine:constant", {}, "model.name", "no function constant"),
            ("mine:good", {"depth": 3}, "model.args", "depth"),
            ("mine:no_module", {}, "model.name", "returned a str"),
            ("mine:wrong_shape", {}, "model.name", "(2, 6), and the data needs (batch, 5)"),
            ("mine:wrong_input", {}, "model.name", "does not take a batch of shape (2, 3, 2)"),
            ("mine:breaks", {}, "model.name", "out of luck"),
            ("mine:leaves", {}, "model.name", "exit code 3"),
        ],
    )
    def test_a_bad_one_is_refused(
        self,
        name: str,
        args: dict[str, Any],
        path: str,
        message: str,
        modules: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(subprocess, "run", in_this_process)
        with pytest.raises(SpecError) as caught:
            look(modules, tmp_path, name, **args)
        assert [problem.path for problem in caught.value.problems] == [path]
        assert message in str(caught.value)
        assert not list(tmp_path.iterdir())  # a refusal is not remembered
