from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from jobs.errors import ArtifactError
from jobs.export import export_onnx
from jobs.measure import compressed_bytes, count_params, macs
from jobs.records import Signature

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
    export_onnx(model, Signature(kind="image", input_shape=(3, 16, 16), outputs=5), tmp_path / "m.onnx", {})
    assert (
        macs(tmp_path / "m.onnx", np.zeros((1, 3, 16, 16), dtype=np.float32))
        == 16 * 16 * 8 * 27 + 6 * 6 * 8 * 18 + 288 * 5
    )
    assert count_params(tmp_path / "m.onnx")[0] == sum(p.numel() for p in model.parameters())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.lstm(x)[0][:, -1])


def test_macs_of_a_recurrent_layer(tmp_path: Path) -> None:
    export_onnx(Recurrent(), Signature(kind="sequence", input_shape=(6, 4), outputs=3), tmp_path / "m.onnx", {})
    assert macs(tmp_path / "m.onnx", np.zeros((1, 6, 4), dtype=np.float32)) == 6 * 4 * 8 * (4 + 8) + 8 * 3


def test_an_embedding_counts_once_wherever_it_is_used_and_multiplies_nothing(language_file: Path) -> None:
    """Indices, a mask's infinity and the scale of the scores are no weights."""
    assert count_params(language_file)[0] == 64 * 32 + 2 * 32 + 3 * 32 * 32
    for steps in (12, 5):
        expected = steps * 32 * (3 * 32 + 2 * steps + 64)
        assert macs(language_file, np.zeros((1, steps), dtype=np.int64)) == expected


def test_macs_of_attention_as_one_operator(tmp_path: Path) -> None:
    nodes = [helper.make_node("Attention", ["input", "input", "input"], ["output"], q_num_heads=2, kv_num_heads=2)]
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["batch", "steps", 8])
    graph = helper.make_graph(nodes, "attention", [value("input")], [value("output")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    assert macs(tmp_path / "m.onnx", np.ones((1, 6, 8), dtype=np.float32)) == 2 * 6 * 6 * 8


def test_a_quantized_table_holds_the_same_weights(tmp_path: Path) -> None:
    table = np.linspace(-1.0, 1.0, 128).reshape(16, 8).astype(np.float32)
    table[:4] = 0.0
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "weight"], ["output"], name="output"),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2, 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.ones((8, 3), np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert count_params(tmp_path / "m.onnx") == count_params(tmp_path / "q.onnx") == (128 + 24, 96 + 24)


def test_zeros_compress_and_noise_does_not(tmp_path: Path, write_mlp: WriteMlp) -> None:
    zeros = write_mlp(tmp_path / "zeros.onnx", [np.zeros((256, 256))])
    noise = write_mlp(tmp_path / "noise.onnx", [np.random.default_rng(0).standard_normal((256, 256))])
    assert compressed_bytes(zeros) < 1000 < 200_000 < compressed_bytes(noise) < noise.stat().st_size


def test_a_damaged_file_is_refused(mlp_file: Path) -> None:
    mlp_file.write_bytes(mlp_file.read_bytes()[:-50])
    with pytest.raises(ArtifactError):
        count_params(mlp_file)
    with pytest.raises(ArtifactError):
        macs(mlp_file, np.zeros((1, 8), dtype=np.float32))


def test_counting_leaves_the_file_alone(mlp_file: Path) -> None:
    before = mlp_file.read_bytes()
    macs(mlp_file, np.zeros((1, 8), dtype=np.float32))
    count_params(mlp_file)
    assert mlp_file.read_bytes() == before
    assert list(mlp_file.parent.iterdir()) == [mlp_file]
    onnx.checker.check_model(onnx.load(mlp_file))
