"""Fewer bits a weight: a float ONNX file in, a quantized ONNX file out.

Which scheme is faster than float is a matter of model and processor; nothing here claims that any is. Without VNNI,
ONNX Runtime adds up products of unsigned activations and signed weights in 16 bits, which saturates: results then
differ from what the file says. So signed weights have 7 bits here (`reduce_range`). Unsigned ones do not saturate;
their kernels are slower in matrix products, and faster in dynamic convolutions.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import ArtifactError, DataError, QuantizationFailed
from jobs.measure.session import load_proto, predict
from jobs.storage import atomic_path

_CALIBRATION_BATCH = 64
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_DYNAMIC_PRODUCTS = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger"})
# In half precision these have no CPU kernel, or a fused one that crashes.
_KEPT_FLOAT = ("Gelu", "LayerNormalization")


def quantize_onnx(source: Path, destination: Path, scheme: str, calibration: np.ndarray) -> dict[str, Any]:
    """Writes `source` with fewer bits a weight to `destination`, atomically. Input and output stay float32.

    - int8_static: weights 7-bit signed a channel, activations 8-bit unsigned, scaled by the smallest and the largest
      value seen in calibration, the model's output left alone; QDQ format.
    - int8_dynamic: weights 7-bit signed a tensor, 8-bit unsigned in a model with convolutions; activations are scaled
      anew in each run.
    - fp16: weights and activations in half precision. On a CPU without kernels for it, the runtime computes in
      float32 with the rounded weights: what is measured there is neither the speed nor the overflow of half precision.

    Args:
        source: a float32 ONNX file.
        destination: the file to write.
        scheme: one of the above.
        calibration: encoded samples (n, *input_shape), float32, of the training split.

    Returns:
        What was done, as JSON: `scheme`, `settings`, `quantized_nodes` (matrix products and convolutions with
        fewer bits), `float_nodes` (those left in float32), `nodes` (how many of each operator).

    Raises:
        DataError: int8_static without calibration samples.
        QuantizationFailed: the scheme finds nothing to quantize, or the result does not run, or not to finite numbers.
        ArtifactError: `source` is damaged.
    """
    if len(calibration) == 0:
        raise DataError.at("data.split.calibration", "quantization needs calibration samples", 0, "at least 1")
    original = load_proto(source)
    with tempfile.TemporaryDirectory() as folder:
        model, settings = _SCHEMES[scheme](source, Path(folder), calibration)
    quantized, kept = _count_products(model.graph, scheme)
    if quantized == 0:
        raise QuantizationFailed(f"{scheme}: the model has no convolution or matrix product that it can quantize")
    _strip(model)
    model.metadata_props.extend(original.metadata_props)
    with atomic_path(destination) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        _check(temporary, scheme, calibration)
    return {
        "scheme": scheme,
        "settings": settings,
        "quantized_nodes": quantized,
        "float_nodes": kept,
        "nodes": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    }


def _int8_static(source: Path, folder: Path, calibration: np.ndarray) -> tuple[Any, dict[str, Any]]:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared, result = _prepare(source, folder), folder / "quantized.onnx"
    quantize_static(
        prepared,
        result,
        _Batches(onnx.load(source).graph.input[0].name, calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    model = onnx.load(result)
    _unquantize_output(model.graph)
    return model, {
        "weights": "int8",
        "activations": "uint8",
        "per_channel": True,
        "reduce_range": True,
        "calibration": "minmax",
        "calibration_samples": len(calibration),
    }


def _int8_dynamic(source: Path, folder: Path, _: np.ndarray) -> tuple[Any, dict[str, Any]]:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, result = _prepare(source, folder), folder / "quantized.onnx"
    convolutions = any(node.op_type == "Conv" for node in onnx.load(prepared).graph.node)
    weight_type = QuantType.QUInt8 if convolutions else QuantType.QInt8
    quantize_dynamic(prepared, result, weight_type=weight_type, reduce_range=not convolutions)
    return onnx.load(result), {
        "weights": "uint8" if convolutions else "int8",
        "activations": "uint8",
        "per_channel": False,
        "reduce_range": not convolutions,
    }


def _fp16(source: Path, folder: Path, _: np.ndarray) -> tuple[Any, dict[str, Any]]:
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FLOAT]
    )
    return model, {"weights": "float16", "activations": "float16", "kept_float": list(_KEPT_FLOAT)}


_SCHEMES: dict[str, Callable[[Path, Path, np.ndarray], tuple[Any, dict[str, Any]]]] = {
    "fp16": _fp16,
    "int8_dynamic": _int8_dynamic,
    "int8_static": _int8_static,
}


class _Batches:
    """The calibration samples, as onnxruntime's CalibrationDataReader."""

    def __init__(self, input_name: str, samples: np.ndarray) -> None:
        starts = range(0, len(samples), _CALIBRATION_BATCH)
        self._batches = iter([{input_name: samples[i : i + _CALIBRATION_BATCH]} for i in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _prepare(source: Path, folder: Path) -> Path:
    """Shapes inferred and constants folded: what stays unknown would silently stay float."""
    from onnxruntime.quantization import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared)
    return prepared


def _unquantize_output(graph: Any) -> None:
    """Takes away the rounding of the model's output to 256 levels: it saves nothing, and makes logits tie."""
    producers = {output: node for node in graph.node for output in node.output}
    result = graph.output[0].name
    dequantize = producers[result]
    rounding = producers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
    if rounding is None or rounding.op_type != "QuantizeLinear":
        return
    exact, parameters = rounding.input[0], set(rounding.input[1:])
    graph.node.remove(dequantize)
    graph.node.remove(rounding)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [result if name == exact else name for name in names]
        parameters.difference_update(node.input)
    for tensor in [tensor for tensor in graph.initializer if tensor.name in parameters]:
        graph.initializer.remove(tensor)


def _count_products(graph: Any, scheme: str) -> tuple[int, int]:
    """Matrix products and convolutions with quantized factors, and those in float32."""
    from onnx import TensorProto

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    quantized = kept = 0
    for node in graph.node:
        if node.op_type in _DYNAMIC_PRODUCTS:
            quantized += 1
        elif node.op_type in _PRODUCTS:
            factor = node.input[1]
            half = scheme == "fp16" and types.get(factor, TensorProto.FLOAT16) == TensorProto.FLOAT16
            done = half or factor in dequantized
            quantized, kept = quantized + done, kept + (not done)
    return quantized, kept


def _strip(model: Any) -> None:
    # Inferred shapes and the tools' own notes would count as bytes of the model.
    model.graph.ClearField("value_info")
    for item in (model, model.graph, *model.graph.node, *model.graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _check(path: Path, scheme: str, calibration: np.ndarray) -> None:
    try:
        outputs = predict(path, calibration)
    except ArtifactError as error:
        raise QuantizationFailed(f"{scheme}: the quantized model does not run on this machine: {error}") from error
    if not np.isfinite(outputs).all():
        raise QuantizationFailed(f"{scheme}: outputs of the quantized model are not finite on calibration samples")
