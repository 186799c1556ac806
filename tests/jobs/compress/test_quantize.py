from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from jobs.compress import quantize_onnx
from jobs.errors import ArtifactError, DataError, QuantizationFailed
from jobs.export import export_onnx
from jobs.measure import condense, count_params, evaluate, predict
from jobs.records import Signature

SCHEMES = ["int8_static", "int8_dynamic", "fp16"]
X, LABELS = load_digits(return_X_y=True)
DIGITS = Signature(kind="image", input_shape=(1, 8, 8), outputs=10)
FOUR = Signature(kind="vector", input_shape=(4,), outputs=4)
IMAGES = ((X / 16.0 - 0.3) / 0.38).astype(np.float32).reshape(-1, 1, 8, 8)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


@pytest.fixture(scope="module", params=[lenet, mlp])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float file of a model that has learnt the digits 300 … 1796."""
    torch.manual_seed(0)
    model = request.param()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.from_numpy(IMAGES[300:]), torch.from_numpy(LABELS[300:])
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("trained") / f"{request.param.__name__}.onnx"
    export_onnx(model, DIGITS, path, {"run": "r1"})
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_accuracy_survives(trained: Path, tmp_path: Path, scheme: str) -> None:
    done = quantize_onnx(trained, tmp_path / "q.onnx", scheme, IMAGES[300:556])
    dense = evaluate("accuracy", predict(trained, IMAGES[:300]), LABELS[:300])
    quantized = evaluate("accuracy", predict(tmp_path / "q.onnx", IMAGES[:300]), LABELS[:300])
    assert dense > 0.9
    assert abs(quantized - dense) <= 0.02
    assert done["scheme"] == scheme
    assert (done["quantized_nodes"], done["float_nodes"]) == ((4, 0) if trained.stem == "lenet" else (3, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch_size", [1, 64])
def test_input_and_output_stay_float_and_the_batch_free(
    trained: Path, tmp_path: Path, scheme: str, batch_size: int
) -> None:
    quantize_onnx(trained, tmp_path / "q.onnx", scheme, IMAGES[300:400])
    graph = onnx.load(tmp_path / "q.onnx").graph
    for value in (graph.input[0], graph.output[0]):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")
    outputs = predict(tmp_path / "q.onnx", IMAGES[:batch_size], batch_size=batch_size)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, predict(trained, IMAGES[:batch_size]), atol=1.0)


@pytest.fixture(scope="module")
def large_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    path = tmp_path_factory.mktemp("large") / "mlp.onnx"
    export_onnx(model, Signature(kind="vector", input_shape=(64,), outputs=10), path, {})
    return path


@pytest.mark.parametrize(("scheme", "factor"), [("int8_static", 3.5), ("int8_dynamic", 3.7), ("fp16", 1.95)])
def test_an_mlp_shrinks_by_its_bits(large_mlp: Path, tmp_path: Path, scheme: str, factor: float) -> None:
    quantize_onnx(large_mlp, tmp_path / "q.onnx", scheme, IMAGES[:64].reshape(64, 64))
    assert large_mlp.stat().st_size / (tmp_path / "q.onnx").stat().st_size > factor
    assert count_params(tmp_path / "q.onnx")[0] == 64 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10


def test_static_weights_are_seven_bits_a_channel(trained: Path, tmp_path: Path) -> None:
    quantize_onnx(trained, tmp_path / "q.onnx", "int8_static", IMAGES[300:400])
    graph, tensors = onnx.load(tmp_path / "q.onnx").graph, initializers(tmp_path / "q.onnx")
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = {name: value for name, value in tensors.items() if value.dtype == np.int8 and value.ndim > 1}
    assert len(weights) == (4 if trained.stem == "lenet" else 3)
    for name, value in weights.items():
        assert np.abs(value).max() <= 64  # so that 16-bit sums of two products with uint8 cannot saturate
        assert tensors[scales[name]].shape == (value.shape[0],)
    assert not [name for name, value in tensors.items() if value.dtype == np.float32 and value.ndim > 1]


def test_dynamic_weights_cannot_saturate_either(trained: Path, tmp_path: Path) -> None:
    done = quantize_onnx(trained, tmp_path / "q.onnx", "int8_dynamic", IMAGES[300:400])
    tensors = map(onnx.numpy_helper.to_array, onnx.load(tmp_path / "q.onnx").graph.initializer)
    weights = [value for value in tensors if value.itemsize == 1 and value.ndim > 1]
    assert len(weights) == done["quantized_nodes"]
    for value in weights:
        assert value.dtype == done["settings"]["weights"]
        assert value.dtype == np.uint8 or np.abs(value).max() <= 64


def test_static_results_are_what_the_file_says(trained: Path, tmp_path: Path) -> None:
    """The runtime's integer kernels agree with the exact meaning of the file: nothing saturates."""
    from onnx.reference import ReferenceEvaluator

    quantize_onnx(trained, tmp_path / "q.onnx", "int8_static", IMAGES[300:400])
    x = IMAGES[:16]
    (exact,) = ReferenceEvaluator(str(tmp_path / "q.onnx")).run(None, {"input": x})
    # A tie in rounding may fall the other way: a step or two of the last activation, no more.
    assert np.abs(predict(tmp_path / "q.onnx", x) - exact).max() < 0.02 * np.abs(exact).max()


def test_the_static_output_is_not_rounded(large_mlp: Path, tmp_path: Path) -> None:
    samples = IMAGES[:1000].reshape(1000, 64)
    quantize_onnx(large_mlp, tmp_path / "q.onnx", "int8_static", samples[:100])
    assert len(np.unique(predict(tmp_path / "q.onnx", samples)[:, 0])) > 500  # 8 bits have 256 values


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_file_gives_the_same_bytes_with_its_metadata(trained: Path, tmp_path: Path, scheme: str) -> None:
    for name in ("a.onnx", "b.onnx"):
        quantize_onnx(trained, tmp_path / name, scheme, IMAGES[300:400])
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    model = onnx.load(tmp_path / "a.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"run": "r1"}
    assert not model.graph.value_info


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, batch_first=True)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.lstm(x.squeeze(1))[0][:, -1])


def test_a_recurrent_model_is_quantized_dynamically_and_not_by_halves_in_silence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(Recurrent(), DIGITS, tmp_path / "m.onnx", {})
    dynamic = quantize_onnx(tmp_path / "m.onnx", tmp_path / "d.onnx", "int8_dynamic", IMAGES[:64])
    static = quantize_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", "int8_static", IMAGES[:64])
    assert (dynamic["quantized_nodes"], dynamic["float_nodes"]) == (2, 0)
    # The recurrence computes in float, on weights that are stored in 8 bits.
    assert (static["quantized_nodes"], static["float_nodes"]) == (2, 0)
    assert static["nodes"]["LSTM"] == 1
    assert (tmp_path / "s.onnx").stat().st_size < 0.4 * (tmp_path / "m.onnx").stat().st_size
    difference = predict(tmp_path / "d.onnx", IMAGES[:64]) - predict(tmp_path / "m.onnx", IMAGES[:64])
    assert np.abs(difference).max() < 0.05
    assert (tmp_path / "d.onnx").stat().st_size < 0.4 * (tmp_path / "m.onnx").stat().st_size


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("scheme", "bytes_a_weight"), [("int8_static", 1), ("int8_dynamic", 1), ("fp16", 2)])
def test_a_language_model_keeps_its_predictions_and_its_tied_embedding(
    language_file: Path, texts: tuple[np.ndarray, np.ndarray], tmp_path: Path, scheme: str, bytes_a_weight: int
) -> None:
    x, _ = texts
    logits = predict(language_file, x)
    predicted = np.where(x > 0, logits.argmax(-1), -100)  # what the float file would say counts as right
    done = quantize_onnx(language_file, tmp_path / "q.onnx", scheme, x)
    assert evaluate("accuracy", condense(predict(tmp_path / "q.onnx", x), predicted), predicted) > 0.95
    # The products of scores and shares, of two activations each, have no weights.
    assert (done["quantized_nodes"], done["float_nodes"]) == ((6, 0) if scheme == "fp16" else (4, 2))
    assert count_params(tmp_path / "q.onnx")[0] == count_params(language_file)[0]
    tables = [value for value in initializers(tmp_path / "q.onnx").values() if set(value.shape) == {64, 32}]
    assert [value.nbytes for value in tables] == [64 * 32 * bytes_a_weight]


def test_a_causal_mask_does_not_stretch_the_scales_of_activations(
    language_file: Path, texts: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    done = quantize_onnx(language_file, tmp_path / "q.onnx", "int8_static", texts[0])
    assert done["settings"]["products_alone"]
    graph, tensors = onnx.load(tmp_path / "q.onnx").graph, initializers(tmp_path / "q.onnx")
    scales = [tensors[node.input[1]] for node in graph.node if node.op_type.endswith("quantizeLinear")]
    scales += [tensors[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert 0.0 < max(scale.max() for scale in scales) < 0.1


def test_steps_first_before_a_product_do_not_crash_half_precision(tmp_path: Path) -> None:
    """As after a recurrent layer; ONNX Runtime 1.32 dies where a cast separates the two."""
    rng = np.random.default_rng(0)
    shapes = {"table": (16, 8), "first": (8, 8), "second": (8, 4)}
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "first"], ["mixed"], name="mixed"),
        helper.make_node("Transpose", ["mixed"], ["swapped"], name="swapped", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["swapped", "second"], ["output"], name="output"),
    ]
    graph = helper.make_graph(
        nodes,
        "steps_first",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["steps", "batch"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "steps", 4])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), n) for n, shape in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x = rng.integers(16, size=(6, 5))
    assert quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "fp16", x)["float_nodes"] == 0
    np.testing.assert_allclose(predict(tmp_path / "q.onnx", x), predict(tmp_path / "m.onnx", x), atol=0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_as_one_operator_stays_float(tmp_path: Path, scheme: str) -> None:
    nodes = [
        helper.make_node("Attention", ["input", "input", "input"], ["mixed"], "mixed", q_num_heads=2, kv_num_heads=2),
        helper.make_node("MatMul", ["mixed", "weight"], ["output"], "output"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 6, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 6, 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    assert quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", scheme, x)["quantized_nodes"] == 1
    np.testing.assert_allclose(predict(tmp_path / "q.onnx", x), predict(tmp_path / "m.onnx", x), atol=0.05)


def test_a_model_that_the_tools_do_not_take_is_a_reason(
    language_file: Path, texts: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", refuse)
    with pytest.raises(QuantizationFailed, match="int8_dynamic does not suit this model: ValueError no such operator"):
        quantize_onnx(language_file, tmp_path / "q.onnx", "int8_dynamic", texts[0])


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((4,), factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * self.factor)


def test_nothing_to_quantize_is_an_error_and_no_file(tmp_path: Path) -> None:
    export_onnx(Scale(2.0), FOUR, tmp_path / "m.onnx", {})
    for scheme in SCHEMES:
        with pytest.raises(QuantizationFailed, match=f"{scheme}: the model has no convolution or matrix product"):
            quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", scheme, np.ones((8, 4), dtype=np.float32))
    assert not (tmp_path / "q.onnx").exists()


def test_an_overflow_is_an_error_and_no_file(tmp_path: Path) -> None:
    export_onnx(nn.Sequential(Scale(2.0), nn.Linear(4, 2)), FOUR, tmp_path / "m.onnx", {})
    with pytest.raises(QuantizationFailed, match="fp16: outputs of the quantized model are not finite"):
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "fp16", np.full((8, 4), 3e38, dtype=np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_calibration_needs_samples_and_the_source_to_be_whole(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match="calibration"):
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8_static", np.zeros((0, 4), dtype=np.float32))
    with pytest.raises(ArtifactError, match="damaged"):
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "fp16", np.zeros((1, 4), dtype=np.float32))
