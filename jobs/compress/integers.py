"""Weights and activations in 8 bits: int8_static and int8_dynamic, with ONNX Runtime's own tools.

Without VNNI, ONNX Runtime adds up products of unsigned activations and signed weights in 16 bits, which saturates:
results then differ from what the file says. So signed weights have 7 bits (`reduce_range`) unless asked otherwise.
Unsigned ones do not saturate; their kernels are slower in matrix products, and faster in dynamic convolutions.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from pathlib import Path
from typing import Any

import numpy as np

from jobs.compress import graphs
from jobs.compress.calibration import Ranges
from jobs.compress.graphs import WEIGHTED
from jobs.compress.variants import Variant

Overrides = dict[str, list[dict[str, Any]]]
"""By tensor, how it is quantized: one entry, or one a channel; see ONNX Runtime's TensorQuantOverrides."""


def static(
    prepared: Any,
    ranges: Ranges,
    variant: Variant,
    *,
    excluded: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    products_alone: bool | None = None,
    overrides: Overrides | None = None,
) -> Any:
    """A prepared model in QDQ format: each 8-bit value is written as a float one that was quantized and dequantized.

    The model's output is left alone, and so are biases, which the runtime quantizes itself.

    Args:
        ranges: of the activations; see `jobs.compress.calibration`.
        excluded: names of nodes that stay in float32.
        only: names of nodes that alone do not, if any are given.
        products_alone: quantize nothing but the inputs of products with weights; None: where attention or layer
            normalization is in the model. Elsewhere one value may stretch the 8 bits until nothing is left of the
            others: minus infinity in a mask, an outlier in the stream that the residual branches add to.
        overrides: of scales that are known already.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    graph = model.graph
    weighted = {node.name for node in graphs.products(graph)}
    pairs = graphs.twins(graph)
    alone = graphs.has_attention(graph) if products_alone is None else products_alone
    tied = [node.name for node in graph.node if node.op_type == "Gather" and node.input[0] in pairs]
    kept = [n.name for n in graph.node if n.op_type == "Gather" and n.name not in tied]  # see jobs.compress.stored
    if alone:
        kept += [node.name for node in graph.node if node.op_type in WEIGHTED and node.name not in weighted]
    quantizer = QDQQuantizer(
        model,
        variant.per_channel,
        variant.reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if variant.symmetric else QuantType.QUInt8,
        TensorsData(
            CalibrationMethod.MinMax,
            {n: TensorData(lowest=np.float32(low), highest=np.float32(high)) for n, (low, high) in ranges.items()},
        ),
        list(only),
        [*kept, *excluded],
        [*WEIGHTED, "Gather"] if alone else _every_operator(),
        {
            "ActivationSymmetric": variant.symmetric,
            "ForceQuantizeNoInputCheck": True,
            # Convolutions are integer kernels only where their outputs are rounded as well.
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED) if graphs.has_attention(graph) else [],
            "TensorQuantOverrides": {**_as_one_tensor([*pairs, *pairs.values()]), **(overrides or {})},
        },
    )
    quantizer.quantize_model()
    result = quantizer.model.model
    graphs.tie(result.graph, pairs)
    _unquantize_output(result.graph)
    _biases_in_float(result.graph)
    return result


def _biases_in_float(graph: Any) -> None:
    """Puts float biases for those of 32-bit integers, with their scales and zero points: a third of the bytes.

    The runtime quantizes them when it opens the file. That the tool did it first has kept scales of weights so large
    that the integers fit. A matrix product whose result is not rounded keeps integers: with a float bias it would be
    one of floats, of weights that are dequantized in each run.
    """
    from onnx import TensorProto, numpy_helper

    tensors = graphs.constants(graph)
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    needed = {n.input[2] for n in graph.node if n.op_type == "Gemm" and len(n.input) > 2 and n.output[0] not in rounded}
    nodes = []
    for node in graph.node:
        bias = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if bias is None or bias.data_type != TensorProto.INT32 or node.output[0] in needed:
            nodes.append(node)
            continue
        values = graphs.array_of(bias) * graphs.array_of(tensors[node.input[1]])
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    graphs.replace_nodes(graph, nodes)


def _every_operator() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def dynamic(source: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model with activations scaled anew in each run, and what was done."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, result = graphs.prepare(source, folder), folder / "quantized.onnx"
    graph = prepared.graph
    convolutions = any(node.op_type == "Conv" for node in graph.node)
    pairs = graphs.twins(graph)
    quantize_dynamic(
        prepared,
        result,
        weight_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
        reduce_range=not convolutions,
        # Attention as one operator is not among them: the tool takes it for another one of the same name.
        op_types_to_quantize=["Conv", "Gather", "LSTM", "MatMul"],
        nodes_to_exclude=[n.name for n in graph.node if n.op_type == "Gather" and n.input[0] not in pairs],
        extra_options={"TensorQuantOverrides": _as_one_tensor(list(pairs))},
    )
    model = onnx.load(result)
    graphs.tie(model.graph, pairs)
    return model, {
        "weights": "uint8" if convolutions else "int8",
        "activations": "uint8",
        "per_channel": False,
        "reduce_range": not convolutions,
    }


def _as_one_tensor(names: list[str]) -> Overrides:
    """What makes quantization give tensors that are the same the same integers."""
    from onnxruntime.quantization import QuantType

    return {name: [{"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": True}] for name in names}


def _unquantize_output(graph: Any) -> None:
    """Takes away the rounding of the model's output to 256 levels: it saves nothing, and makes logits tie."""
    producers = {output: node for node in graph.node for output in node.output}
    result = graph.output[0].name
    dequantize = producers[result]
    rounding = producers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
    if rounding is None or rounding.op_type != "QuantizeLinear":
        return
    exact = rounding.input[0]
    nodes = [node for node in graph.node if node.output[0] not in (dequantize.output[0], rounding.output[0])]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [result if name == exact else name for name in names]
    graphs.replace_nodes(graph, nodes)
