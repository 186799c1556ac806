"""The user's own model: measured in a process of its own, block by block where it has blocks; refused in words."""

import io
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from small_models import CODES, LANGUAGE, TOKENS

from jobs.errors import SpecError
from jobs.models import factory
from jobs.models.factory import inspect_factory
from jobs.records import ModelSummary, Signature
from jobs.spec.model import FactoryModel

TABLE = Signature(kind="vector", input_shape=(3, 2), outputs=5)

FACTORIES = """
import sys
import torch
from torch import nn
from torch.nn import functional


def good(input_shape, outputs, width=4):
    print("chatter on stdout")
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], width), nn.ReLU(),
                         nn.Linear(width, outputs))


class Own(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def own(input_shape, outputs):
    return Own(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], outputs))


def tied(input_shape, outputs):
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, second, nn.Linear(6, outputs))


class Recurrence(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Attention(nn.Module):
    def forward(self, x):
        x = x.unsqueeze(1)
        return functional.scaled_dot_product_attention(x, x, x).squeeze(1)


def language(input_shape, outputs, num_codes):
    return nn.Sequential(nn.Embedding(num_codes[0], 8), Recurrence(8), nn.Linear(8, outputs))


def both_ways(input_shape, outputs, num_codes):
    return nn.Sequential(nn.Embedding(num_codes[0], 8), Attention(), nn.Linear(8, outputs))


def codes(input_shape, outputs, num_codes):
    assert input_shape == (len(num_codes),)
    return nn.Sequential(nn.Embedding(max(num_codes), 4), nn.Flatten(), nn.Linear(4 * len(num_codes), outputs))


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean(dim=1)


def texts(input_shape, outputs, num_codes):
    return nn.Sequential(nn.Embedding(num_codes[0], 8), Pooled(), nn.Linear(8, outputs))


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


def look(modules: Path, cache: Path, name: str, signature: Signature = TABLE, **args: Any) -> ModelSummary:
    model = FactoryModel(name=name, args=args)
    return inspect_factory(model, signature, working_dir=modules, code="digest", cache=cache)


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


def test_a_good_one_is_measured_and_remembered(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_sequential_is_measured_block_by_block(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", in_this_process)
    summary = look(modules, tmp_path, "mine:good")
    assert summary.no_pipeline == ""
    assert "how a model that Thresher did not make is split" in summary.no_tensor
    assert [block.name for block in summary.blocks] == ["0", "1", "2", "3"]
    assert [block.layers for block in summary.blocks] == [("Flatten",), ("Linear",), ("ReLU",), ("Linear",)]
    assert [block.output_shape for block in summary.blocks] == [(6,), (4,), (4,), (5,)]
    assert [block.macs for block in summary.blocks] == [0, 24, 0, 20]
    # The flattened batch is the batch; ReLU keeps what it gave; outputs and loss count twice.
    assert [block.activations for block in summary.blocks] == [0, 0, 4, 10]
    assert summary.activations == 14


@pytest.mark.parametrize(
    ("name", "reason"),
    [("own", "an nn.Sequential of at least two blocks"), ("tied", "share a parameter: 1.weight and 2.weight")],
)
def test_what_can_be_no_pipeline_says_why(
    name: str, reason: str, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", in_this_process)
    summary = look(modules, tmp_path, f"mine:{name}")
    assert reason in summary.no_pipeline
    assert len(summary.blocks) == (1 if name == "own" else 4)
    assert summary.params == sum(block.params for block in summary.blocks) - (36 if name == "tied" else 0)


@pytest.mark.parametrize(
    ("name", "signature", "macs"),
    [
        ("language", LANGUAGE, 9 * (4 * 8 * 16 + 8 * 24)),
        ("codes", CODES, 4 * 3 * 2),
        ("texts", TOKENS, 8 * 3),
    ],
)
def test_codes_are_told_and_counted(
    name: str, signature: Signature, macs: int, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", in_this_process)
    summary = look(modules, tmp_path, f"mine:{name}", signature)
    assert summary.macs == macs
    assert summary.no_pipeline == ""


def test_one_that_is_stuck_is_not_waited_for(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("texts", "(2, 24), and the data needs (batch, 9, 24)"),
        ("both_ways", "no language model: what it says of a step depends on steps after it"),
    ],
)
def test_a_bad_language_model_is_refused(
    name: str, message: str, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", in_this_process)
    with pytest.raises(SpecError) as caught:
        look(modules, tmp_path, f"mine:{name}", LANGUAGE)
    assert message in str(caught.value)
