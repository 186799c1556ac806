"""What a model file weighs: compressed bytes, parameters, multiply-accumulate operations."""

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jobs.measure.session import load_proto, open_session

_ZSTD_LEVEL = 19
_ZSTD_LEVEL_LARGE = 3
_LARGE_BYTES = 64 << 20

# Where operators take the scale and zero point of a quantized tensor, rather than values.
_QUANTIZATION_INPUTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
}
_PACKED = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
"""By operator, the input that holds two 4-bit integers a byte; 8 stands for zero."""
_ZERO_POINTS = {
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((0, 2), (1, 3)),
    "ConvInteger": ((0, 2), (1, 3)),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}
"""By operator: inputs with values, and the input with the zero point of each."""
_MOVES = frozenset({"Gather", "Reshape", "Transpose"})
"""What only moves values, so that the zero point of its output is that of its first input."""
_TAKES_SINGLE_WEIGHTS = frozenset({"Add", "Conv", "ConvTranspose", "DequantizeLinear", "Gemm", "MatMul", "PRelu"})
"""Where a tensor of one value may be a weight: the bias of a single output. Elsewhere it is a constant."""


def compressed_bytes(path: Path) -> int:
    """The size of the file under zstd: level 19, or 3 beyond 64 MiB."""
    import zstandard

    content = path.read_bytes()
    level = _ZSTD_LEVEL if len(content) <= _LARGE_BYTES else _ZSTD_LEVEL_LARGE
    return len(zstandard.ZstdCompressor(level=level).compress(content))


def count_params(path: Path) -> tuple[int, int]:
    """How many weights an ONNX file holds, and how many of them are not zero.

    Floating-point tensors count, tables of embeddings too, and the integers of quantized ones, zero where they equal
    their zero point. A tensor that is used in several places is held, and counts, once. Scales, zero points, shapes,
    indices and single constants do not count. Raises ArtifactError for a damaged file.
    """
    graph = load_proto(path).graph
    tensors = {tensor.name: _to_array(tensor) for tensor in graph.initializer}
    excluded = {name for name, tensor in tensors.items() if tensor.size == 1} - {
        name for node in graph.node if node.op_type in _TAKES_SINGLE_WEIGHTS for name in node.input
    }
    moved: dict[str, str] = {}
    packed: dict[str, int] = {}
    zero_points: dict[str, tuple[np.ndarray, int]] = {}
    for node in graph.node:
        inputs = list(node.input)
        excluded.update(inputs[i] for i in _QUANTIZATION_INPUTS.get(node.op_type, ()) if i < len(inputs))
        if node.op_type in _MOVES:
            moved[node.output[0]] = moved.get(inputs[0], inputs[0])
        if node.op_type in _PACKED and node.domain == "com.microsoft":
            name = moved.get(inputs[_PACKED[node.op_type]], inputs[_PACKED[node.op_type]])
            packed[name] = max(packed.get(name, 0), _num_packed(node, tensors.get(name)))
        for values, zero in _ZERO_POINTS.get(node.op_type, ()):
            if zero < len(inputs) and inputs[zero] in tensors:
                zero_points[moved.get(inputs[values], inputs[values])] = tensors[inputs[zero]], _channel_axis(node)
    # The scale of a dynamically quantized weight is multiplied in: only its name tells it from a weight.
    excluded.update(f"{name.removesuffix('_quantized')}_scale" for name in tensors if name.endswith("_quantized"))
    params = nonzero = 0
    for name, tensor in tensors.items():
        # Biases are quantized to 32 bits; other integers, which nothing dequantizes, are shapes and indices.
        counts = tensor.dtype.kind == "f" or tensor.dtype.itemsize == 1 or name in zero_points
        if name in packed:
            params += packed[name]  # what fills up the last block of a row is zero, and no weight
            nonzero += int(np.count_nonzero((tensor & 15) != 8) + np.count_nonzero((tensor >> 4) != 8))
            continue
        if name in excluded or tensor.ndim == 0 or tensor.dtype == bool or not counts:
            continue
        params += tensor.size
        nonzero += int(np.count_nonzero(tensor != _aligned(zero_points.get(name), tensor)))
    return params, nonzero


def holds_integers(path: Path) -> bool:
    """Whether weights of the file are 8-bit integers."""
    import onnx

    kinds = {tensor.data_type for tensor in load_proto(path).graph.initializer if len(tensor.dims) > 1}
    return bool(kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


def macs(path: Path, x: np.ndarray) -> int:
    """Multiply-accumulate operations of a float ONNX file for one sample: convolutions, matrix products, recurrence.

    The shapes are those of a run of the model, which no shape inference knows as well. Padding is computed with, and
    counts; looking up an embedding multiplies nothing.

    Args:
        path: a float file.
        x: an encoded sample, (1, *input_shape).

    Raises:
        ArtifactError: the file is damaged, or cannot be opened here.
    """
    model = load_proto(path)
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wanted = dict.fromkeys(name for node in nodes for name in (*node.input[:3], node.output[0]) if name not in shapes)
    shapes |= _shapes_in_a_run(path, model, list(wanted), x)
    return sum(_macs(node, shapes) for node in nodes)


_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_COUNTED = frozenset({"Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"}) | _RECURRENT


def _macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, output = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type in _RECURRENT:
        # (steps, batch, features) times the weights of the input and of the state, both of all gates.
        return prod(first[:2]) * (prod(second) + prod(shapes[node.input[2]]))
    if node.op_type == "Attention":
        # Queries and keys (batch, heads, steps, width) or (batch, steps, heads · width): every query with every key.
        return (prod(first) + prod(output)) * second[-2]
    if node.op_type == "Conv":
        return prod(output) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(output) * (first[0] if transposed else first[-1])


def _shapes_in_a_run(path: Path, model: Any, names: list[str], x: np.ndarray) -> dict[str, tuple[int, ...]]:
    import onnx

    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    source = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        instrumented = Path(folder) / path.name
        instrumented.write_bytes(model.SerializeToString())
        session = open_session(instrumented)
        outputs = [value.name for value in session.get_outputs()]
        values = session.run(outputs, {source: x})
    return {source: x.shape, **{name: v.shape for name, v in zip(outputs, values, strict=True)}}


def _channel_axis(node: Any) -> int:
    """The axis along which a tensor has several zero points."""
    if node.op_type == "DequantizeLinear":
        return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return -1 if node.op_type == "MatMulInteger" else 0


def _aligned(zero_point: tuple[np.ndarray, int] | None, tensor: np.ndarray) -> np.ndarray | int:
    """A zero point, shaped so that it broadcasts against its tensor."""
    if zero_point is None:
        return 0
    values, axis = zero_point
    if not values.any():
        return 0
    if values.size == 1:
        return values.reshape(())
    shape = [1] * tensor.ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _num_packed(node: Any, tensor: np.ndarray | None) -> int:
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits":
        return int(sizes["K"] * sizes["N"])
    return 0 if tensor is None else 2 * tensor.size


def _to_array(tensor: Any) -> np.ndarray:
    import onnx

    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        bits = np.frombuffer(tensor.raw_data, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tuple(tensor.dims))
    return onnx.numpy_helper.to_array(tensor)
