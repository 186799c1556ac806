"""What several schemes do to an ONNX graph."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply by a weight, their second input."""
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_SENSITIVE = frozenset({"Attention", "LayerNormalization", "Softmax"})


def prepare(source: Path, folder: Path) -> Any:
    """The model with shapes inferred and constants folded: what stays unknown would silently stay float."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return onnx.load(prepared)


def constants(graph: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in graph.initializer}


def is_float(tensor: Any) -> bool:
    from onnx import TensorProto

    return bool(tensor.data_type == TensorProto.FLOAT)


def array_of(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def products(graph: Any) -> list[Any]:
    """The nodes that multiply by a weight in the file, in order."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type in WEIGHTED and node.input[1] in weights]


def lookups(graph: Any) -> list[Any]:
    """The nodes that look rows up in a float table of (rows, width)."""
    tensors = constants(graph)
    return [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[0] in tensors
        and is_float(tensors[node.input[0]])
        and len(tensors[node.input[0]].dims) == 2
        and all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
    ]


def has_attention(graph: Any) -> bool:
    return any(node.op_type in _SENSITIVE for node in graph.node)


def twins(graph: Any) -> dict[str, str]:
    """By table of embeddings (codes, width), the factor of a matrix product that is the same transposed."""
    tensors = {name: tensor for name, tensor in constants(graph).items() if len(tensor.dims) == 2}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & set(tensors)
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"} & set(tensors)
    return {
        table: factor
        for table in sorted(tables)
        for factor in sorted(factors)
        if tensors[table].dims == tensors[factor].dims[::-1]
        and np.array_equal(array_of(tensors[table]).T, array_of(tensors[factor]))
    }


def tie(graph: Any, pairs: dict[str, str]) -> None:
    """Takes quantized factors out of the file that a transposed table stands for: the runtime makes them from it."""
    from onnx import helper

    tensors = constants(graph)
    for table, factor in ((f"{a}_quantized", f"{b}_quantized") for a, b in pairs.items()):
        if table not in tensors or factor not in tensors:
            continue
        if np.array_equal(array_of(tensors[table]).T, array_of(tensors[factor])):
            graph.initializer.remove(tensors[factor])
            graph.node.insert(0, helper.make_node("Transpose", [table], [factor], f"{factor}_tied", perm=[1, 0]))


def split_gemm(graph: Any) -> None:
    """Rewrites each Gemm by a weight as MatMul and Add: quantizers of matrix products pass a Gemm over in silence."""
    from onnx import helper, numpy_helper

    tensors = constants(graph)
    nodes = []
    for node in graph.node:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = not options.get("transA", 0) and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or node.input[1] not in tensors or not plain:
            nodes.append(node)
            continue
        weight = node.input[1]
        if options.get("transB", 0):
            weight = f"{weight}_transposed"
            if weight not in tensors:
                turned = np.ascontiguousarray(array_of(tensors[node.input[1]]).T)
                tensors[weight] = numpy_helper.from_array(turned, weight)
                graph.initializer.append(tensors[weight])
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], node.name))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}_bias"))
    replace_nodes(graph, nodes)


def replace_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Gives the graph other nodes, and takes out the constants that none of them uses."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def use_domain(model: Any, domain: str = "com.microsoft") -> None:
    """Declares a domain of operators; ONNX Runtime's own is `com.microsoft`."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.add(domain=domain, version=1)
