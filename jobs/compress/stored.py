"""Weights that are kept in 8 bits and used in float: what no integer kernel multiplies by.

Tables of embeddings are most of a recommender, and much of a small language model: only the rows that are looked up
are turned back into floats. The weights of recurrent layers and learnt positions are turned back whole.
"""

from typing import Any

import numpy as np

from jobs.compress import graphs

_SMALLEST = 256
"""Values below which a tensor is not worth the node that turns it back."""


def store_tables(model: Any, known: dict[str, np.ndarray] | None = None) -> int:
    """Keeps each float table of embeddings in 8 bits, a scale for each of its columns; how many there were.

    `known` holds scales (width,) of some of the tables, by name.
    """
    from onnx import helper

    graph = model.graph
    tensors = graphs.constants(graph)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    looked_up = graphs.lookups(graph)
    results = {node.output[0] for node in looked_up}
    tables = {n.input[0] for n in looked_up if all(reader.output[0] in results for reader in readers[n.input[0]])}
    tables = {name for name in tables if np.prod(tensors[name].dims) >= _SMALLEST}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.output[0] in results and node.input[0] in tables:
            table, result = node.input[0], node.output[0]
            node.input[0], node.output[0] = f"{table}_quantized", f"{result}_quantized"
            scales = [f"{result}_quantized", f"{table}_scale"]
            nodes.append(helper.make_node("DequantizeLinear", scales, [result], f"{node.name}_float", axis=-1))
    for table in sorted(tables):
        _quantize(graph, tensors[table], axis=1, scale=(known or {}).get(table))
    graphs.replace_nodes(graph, nodes)
    return len(tables)


def store_others(model: Any) -> int:
    """Keeps in 8 bits what recurrent layers multiply by, and learnt positions; how many tensors these were."""
    from onnx import helper

    graph = model.graph
    tensors = graphs.constants(graph)
    kept: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in graphs.RECURRENT:
            kept.update({name: 1 for name in node.input[1:3] if name in tensors})
        elif node.op_type in ("Add", "Slice"):
            kept.update({name: 1 for name in node.input[:2] if name in tensors and len(tensors[name].dims) == 2})
    kept = {
        name: axis
        for name, axis in kept.items()
        if graphs.is_float(tensors[name]) and np.prod(tensors[name].dims) >= _SMALLEST
    }
    restored = []
    for name, axis in sorted(kept.items()):
        _quantize(graph, tensors[name], axis)
        scales = [f"{name}_quantized", f"{name}_scale"]
        restored.append(helper.make_node("DequantizeLinear", scales, [name], f"{name}_float", axis=axis))
        graph.initializer.remove(tensors[name])
    graphs.replace_nodes(graph, [*restored, *graph.node])
    return len(kept)


def _quantize(graph: Any, tensor: Any, axis: int, scale: np.ndarray | None = None) -> None:
    """Puts the integers and the scales along `axis` beside a tensor: symmetric, 8 bits."""
    from onnx import numpy_helper

    values = graphs.array_of(tensor)
    others = tuple(dim for dim in range(values.ndim) if dim != axis)
    if scale is None:
        largest = np.abs(values).max(axis=others)
        scale = np.where(largest > 0, largest / 127.0, 1.0)
    scale = np.expand_dims(scale.astype(np.float32), others)
    integers = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    graph.initializer.extend(
        [
            numpy_helper.from_array(integers, f"{tensor.name}_quantized"),
            numpy_helper.from_array(scale.reshape(-1), f"{tensor.name}_scale"),
        ]
    )
