from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from jobs.errors import JobFailed
from jobs.export import export_onnx
from jobs.models.build import build
from jobs.records import Signature
from jobs.spec.load import model_section

IMAGE = Signature(kind="image", input_shape=(1, 28, 28), outputs=10)
SEQUENCE = Signature(kind="sequence", input_shape=(8, 4), outputs=3)
TOKENS = Signature(kind="tokens", input_shape=(8,), outputs=3, num_codes=(21,))
LANGUAGE = Signature(kind="tokens", input_shape=(8,), outputs=24, num_codes=(24,), per_step=True)
CODES = Signature(kind="codes", input_shape=(3,), outputs=2, num_codes=(10, 7, 3))


def lenet() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 84),
        nn.BatchNorm1d(84),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(84, 10),
    )
    for _ in range(3):  # running statistics other than 0 and 1
        model(2.0 * torch.randn(32, 1, 28, 28) + 1.0)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, path = lenet(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, IMAGE, path, {"b": "2", "a": "1"})
    return model, path


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_file_computes_what_the_module_computes(exported: tuple[nn.Module, Path], batch_size: int) -> None:
    model, path = exported
    x = torch.randn(batch_size, 1, 28, 28)
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == ["input"]
    assert [value.name for value in session.get_outputs()] == ["output"]
    (output,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    assert output.shape == (batch_size, 10)
    assert np.abs(output - expected).max() <= 1e-4


def test_the_file_is_weights_and_little_else(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert weights <= path.stat().st_size <= weights + 4096
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no external data, no temporary files
    assert b".py" not in path.read_bytes()  # no stack traces of the exporting machine


def test_metadata_and_batch_dimension(exported: tuple[nn.Module, Path]) -> None:
    model = onnx.load(exported[1])
    assert {entry.key: entry.value for entry in model.metadata_props} == {"a": "1", "b": "2"}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_same_model_gives_the_same_bytes_and_no_chatter(
    exported: tuple[nn.Module, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, path = exported
    model.train()
    export_onnx(model, IMAGE, tmp_path / "again.onnx", {"a": "1", "b": "2"})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert model.training  # the module itself is left as it was
    assert capfd.readouterr() == ("", "")


def dimensions(value: Any) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def inputs(signature: Signature, lengths: list[int], steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(lengths))
    if signature.kind == "codes":
        return torch.randint(0, 3, (len(lengths), 3), generator=generator)
    if signature.kind == "tokens":
        x = torch.randint(1, 21, (len(lengths), steps), generator=generator)
    else:
        x = torch.randn(len(lengths), steps, 4, generator=generator)
        x[..., -1] = 1.0
    for sample, length in zip(x, lengths, strict=True):
        sample[length:] = 0
    return x


TRANSFORMER = {"layers": 1, "width": 8, "heads": 2}
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("name", "args", "signature"),
    [
        ("recommender", {"embedding": 4, "hidden": [6]}, CODES),
        ("lstm", {"hidden": 6, "layers": 2, "dropout": 0.1}, SEQUENCE),
        ("transformer", TRANSFORMER, TOKENS),
        ("transformer", TRANSFORMER, LANGUAGE),
        ("huggingface", {"config": {"model_type": "bert", **BERT}}, TOKENS),
    ],
)
def test_every_family_with_free_batch_and_steps(
    name: str, args: dict[str, Any], signature: Signature, tmp_path: Path
) -> None:
    model = build(model_section({"name": name, "args": args}), signature, seed=0)
    export_onnx(model, signature, tmp_path / "model.onnx", {})
    graph = onnx.load(tmp_path / "model.onnx").graph
    free = ["batch"] if signature.kind == "codes" else ["batch", "steps"]
    rest = [] if signature.kind == "tokens" else list(signature.input_shape[len(free) - 1 :])
    assert dimensions(graph.input[0]) == free + rest
    assert dimensions(graph.output[0]) == [*(free if signature.per_step else ["batch"]), signature.outputs]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for lengths, steps in (([8], 8), ([8, 1, 5], 8), ([3, 2], 3), ([1], 1)):
        x = inputs(signature, lengths, steps)
        (output,) = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(output, model.eval()(x).numpy(), rtol=0.0, atol=1e-5)


class Unrolled(nn.Module):
    """Takes its number of steps for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def test_steps_are_fixed_where_the_model_fixes_them(tmp_path: Path) -> None:
    export_onnx(Unrolled(), SEQUENCE, tmp_path / "model.onnx", {})
    assert dimensions(onnx.load(tmp_path / "model.onnx").graph.input[0]) == ["batch", 8, 4]


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(2, 4))


def test_a_fixed_batch_size_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="FixedBatch cannot be exported to ONNX with a free batch dimension"):
        export_onnx(FixedBatch(), Signature(kind="vector", input_shape=(4,), outputs=2), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
