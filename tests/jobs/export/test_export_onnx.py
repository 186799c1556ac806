from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from jobs.errors import JobFailed
from jobs.export import export_onnx


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
    export_onnx(model, (1, 28, 28), path, {"b": "2", "a": "1"})
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
    export_onnx(model, (1, 28, 28), tmp_path / "again.onnx", {"a": "1", "b": "2"})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert model.training  # the module itself is left as it was
    assert capfd.readouterr() == ("", "")


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(2, 4))


def test_a_fixed_batch_size_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="FixedBatch cannot be exported to ONNX with a free batch dimension"):
        export_onnx(FixedBatch(), (4,), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
