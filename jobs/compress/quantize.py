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
from jobs.measure.session import batch_within, load_proto, open_session, predictions
from jobs.storage import atomic_path

_CALIBRATION_BATCH = 64
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_DYNAMIC_PRODUCTS = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger"})
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SENSITIVE = frozenset({"Attention", "LayerNormalization", "Softmax"})
# In half precision these have no CPU kernel, or a fused one that crashes.
_KEPT_FLOAT = ("Gelu", "LayerNormalization")


def quantize_onnx(source: Path, destination: Path, scheme: str, calibration: np.ndarray) -> dict[str, Any]:
    """Writes `source` with fewer bits a weight to `destination`, atomically. Input and output keep their types.

    - int8_static: weights 7-bit signed a channel, activations 8-bit unsigned, scaled by the smallest and the largest
      value seen in calibration, the model's output left alone; QDQ format. Recurrence stays in float32, and so does,
      in a model with attention or layer normalization, whatever lies between its products with weights.
    - int8_dynamic: weights 7-bit signed a tensor, 8-bit unsigned in a model with convolutions; activations are scaled
      anew in each run. Products of two activations, as in attention, stay in float32.
    - both: tables of embeddings 8-bit unsigned a tensor; one that is a classifier's weights too, 7-bit signed a tensor.
    - fp16: weights and activations in half precision. On a CPU without kernels for it, the runtime computes in
      float32 with the rounded weights: what is measured there is neither the speed nor the overflow of half precision.

    Args:
        source: a float32 ONNX file; its input may be int64.
        destination: the file to write.
        scheme: one of the above.
        calibration: encoded samples (n, *input_shape) of the training split.

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
    try:
        with tempfile.TemporaryDirectory() as folder:
            model, settings = _SCHEMES[scheme](source, Path(folder), calibration)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        # What the tools raise for operators that they do not know how to quantize.
        raise QuantizationFailed(
            f"{scheme} does not suit this model: {type(error).__name__} {error}".strip()
        ) from error
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
    graph = onnx.load(prepared).graph
    twins = _twins(graph)
    products_alone = any(node.op_type in _SENSITIVE for node in graph.node)
    quantize_static(
        prepared,
        result,
        _Batches(prepared, calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        calibrate_method=CalibrationMethod.MinMax,
        **(_products_alone(graph) if products_alone else {}),
        extra_options={
            "OpTypesToExcludeOutputQuantization": list(_WEIGHTED) if products_alone else [],
            "TensorQuantOverrides": _as_one_tensor([*twins, *twins.values()]),
        },
    )
    model = onnx.load(result)
    _tie(model.graph, twins)
    _unquantize_output(model.graph)
    return model, {
        "weights": "int8",
        "activations": "uint8",
        "per_channel": True,
        "reduce_range": True,
        "products_alone": products_alone,
        "calibration": "minmax",
        "calibration_samples": len(calibration),
    }


def _products_alone(graph: Any) -> dict[str, Any]:
    """What keeps quantize_static to products with weights, and to tables of embeddings.

    Elsewhere one value may stretch the 8 bits until nothing is left of the others: minus infinity in a mask, an
    outlier in the stream that the residual branches add to.
    """
    weights = {tensor.name for tensor in graph.initializer}
    return {
        "op_types_to_quantize": [*_WEIGHTED, "Gather"],
        "nodes_to_exclude": [n.name for n in graph.node if n.op_type in _WEIGHTED and n.input[1] not in weights],
    }


def _int8_dynamic(source: Path, folder: Path, _: np.ndarray) -> tuple[Any, dict[str, Any]]:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, result = _prepare(source, folder), folder / "quantized.onnx"
    graph = onnx.load(prepared).graph
    convolutions = any(node.op_type == "Conv" for node in graph.node)
    twins = _twins(graph)
    quantize_dynamic(
        prepared,
        result,
        weight_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
        reduce_range=not convolutions,
        # Attention as one operator is not among them: the tool takes it for another one of the same name.
        op_types_to_quantize=["Conv", "Gather", "LSTM", "MatMul"],
        extra_options={"TensorQuantOverrides": _as_one_tensor(list(twins))},
    )
    model = onnx.load(result)
    _tie(model.graph, twins)
    return model, {
        "weights": "uint8" if convolutions else "int8",
        "activations": "uint8",
        "per_channel": False,
        "reduce_range": not convolutions,
    }


def _fp16(source: Path, folder: Path, _: np.ndarray) -> tuple[Any, dict[str, Any]]:
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    original = onnx.load(source)
    model = convert_float_to_float16(
        original,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_KEPT_FLOAT],
        node_block_list=_swaps_before_products(original.graph),
    )
    return model, {"weights": "float16", "activations": "float16", "kept_float": list(_KEPT_FLOAT)}


def _swaps_before_products(graph: Any) -> list[str]:
    """Names of the transpositions that a matrix product takes directly, and that leave its rows whole.

    The product's kernel takes float32. Where a cast lies in between, as after recurrence that has the steps first,
    ONNX Runtime 1.32 tries to swap the two (MatmulTransposeFusion), and the process dies.
    """
    factors = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    names = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.output[0] in factors:
            order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
            if order and order[-1] == len(order) - 1:
                names.append(node.name)
    return names


_SCHEMES: dict[str, Callable[[Path, Path, np.ndarray], tuple[Any, dict[str, Any]]]] = {
    "fp16": _fp16,
    "int8_dynamic": _int8_dynamic,
    "int8_static": _int8_static,
}


class _Batches:
    """The calibration samples, as onnxruntime's CalibrationDataReader."""

    def __init__(self, path: Path, samples: np.ndarray) -> None:
        session = open_session(path)
        name, size = session.get_inputs()[0].name, batch_within(session, samples, _CALIBRATION_BATCH)
        self._batches = iter([{name: samples[i : i + size]} for i in range(0, len(samples), size)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _prepare(source: Path, folder: Path) -> Path:
    """Shapes inferred and constants folded: what stays unknown would silently stay float."""
    from onnxruntime.quantization import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return prepared


def _twins(graph: Any) -> dict[str, str]:
    """By table of embeddings (codes, width), the factor of a matrix product that is the same transposed."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & set(tensors)
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"} & set(tensors)
    return {
        table: factor
        for table in sorted(tables)
        for factor in sorted(factors)
        if tensors[table].dims == tensors[factor].dims[::-1]
        and np.array_equal(numpy_helper.to_array(tensors[table]).T, numpy_helper.to_array(tensors[factor]))
    }


def _as_one_tensor(names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What makes quantization give tensors that are the same the same integers."""
    from onnxruntime.quantization import QuantType

    return {name: [{"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": True}] for name in names}


def _tie(graph: Any, twins: dict[str, str]) -> None:
    """Takes quantized factors out of the file that a transposed table stands for: the runtime makes them from it."""
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for table, factor in ((f"{a}_quantized", f"{b}_quantized") for a, b in twins.items()):
        if table not in tensors or factor not in tensors:
            continue
        if np.array_equal(numpy_helper.to_array(tensors[table]).T, numpy_helper.to_array(tensors[factor])):
            graph.initializer.remove(tensors[factor])
            graph.node.insert(0, helper.make_node("Transpose", [table], [factor], f"{factor}_tied", perm=[1, 0]))


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
        finite = all(np.isfinite(outputs).all() for outputs in predictions(path, calibration))
    except ArtifactError as error:
        raise QuantizationFailed(f"{scheme}: the quantized model does not run on this machine: {error}") from error
    if not finite:
        raise QuantizationFailed(f"{scheme}: outputs of the quantized model are not finite on calibration samples")
