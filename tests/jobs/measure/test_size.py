from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from jobs.errors import ArtifactError
from jobs.export import export_onnx
from jobs.measure import compressed_bytes, count_params, macs

WriteMlp = Callable[[Path, list[np.ndarray]], Path]


def test_weights_are_counted_and_zeros_are_not(tmp_path: Path, write_mlp: WriteMlp) -> None:
    weight = np.ones((8, 16))
    weight[0] = 0.0
    assert count_params(write_mlp(tmp_path / "m.onnx", [weight, np.ones((16, 3))])) == (176, 160)


@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
def test_a_quantized_file_holds_the_same_weights(mlp_file: Path, tmp_path: Path, weight_type: QuantType) -> None:
    quantize_dynamic(mlp_file, tmp_path / "q.onnx", weight_type=weight_type)
    params, nonzero = count_params(tmp_path / "q.onnx")
    assert params == count_params(mlp_file)[0] == 176
    assert 165 <= nonzero < 177  # the weights nearest to zero round to the zero point


def test_the_zero_point_of_unsigned_weights_is_their_zero(tmp_path: Path, write_mlp: WriteMlp) -> None:
    weight = np.linspace(-1.0, 1.0, 128).reshape(8, 16)
    weight[:4] = 0.0
    write_mlp(tmp_path / "m.onnx", [weight])
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=QuantType.QUInt8)
    assert count_params(tmp_path / "q.onnx") == (128, 64)


def test_macs_of_convolution_pooling_and_linear(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )
    export_onnx(model, (3, 16, 16), tmp_path / "m.onnx", {})
    assert macs(tmp_path / "m.onnx") == 16 * 16 * 8 * 27 + 6 * 6 * 8 * 18 + 288 * 5
    assert count_params(tmp_path / "m.onnx")[0] == sum(p.numel() for p in model.parameters())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.lstm(x)[0][:, -1])


def test_macs_of_a_recurrent_layer(tmp_path: Path) -> None:
    export_onnx(Recurrent(), (6, 4), tmp_path / "m.onnx", {})
    assert macs(tmp_path / "m.onnx") == 6 * 4 * 8 * (4 + 8) + 8 * 3


def test_zeros_compress_and_noise_does_not(tmp_path: Path, write_mlp: WriteMlp) -> None:
    zeros = write_mlp(tmp_path / "zeros.onnx", [np.zeros((256, 256))])
    noise = write_mlp(tmp_path / "noise.onnx", [np.random.default_rng(0).standard_normal((256, 256))])
    assert compressed_bytes(zeros) < 1000 < 200_000 < compressed_bytes(noise) < noise.stat().st_size


def test_a_damaged_file_is_refused(mlp_file: Path) -> None:
    mlp_file.write_bytes(mlp_file.read_bytes()[:-50])
    for function in (count_params, macs):
        with pytest.raises(ArtifactError):
            function(mlp_file)


def test_counting_leaves_the_file_alone(mlp_file: Path) -> None:
    before = mlp_file.read_bytes()
    macs(mlp_file)
    count_params(mlp_file)
    assert mlp_file.read_bytes() == before
    assert list(mlp_file.parent.iterdir()) == [mlp_file]
    onnx.checker.check_model(onnx.load(mlp_file))
