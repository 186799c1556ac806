"""Weights in 4 bits, in blocks of 16 or 32 along the inputs, each with a scale: matrix products and embeddings.

ONNX Runtime multiplies by them with MatMulNBits and looks them up with GatherBlockQuantized, in float32
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). A block's integers are round(w / s) + 8
in 0 … 15; s is the one of a few that loses least in squares, since the largest weight of a block is seldom worth its
range. No activation is quantized, so nothing needs calibration.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jobs.compress import graphs
from jobs.compress.stored import store_others, store_tables

_BLOCKS = (32, 16)
_SHRINKS = np.linspace(0.7, 1.0, 13, dtype=np.float32)
_DOMAIN = "com.microsoft"


def int4_weight(source: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model with 4-bit weights, and what was done. Convolutions stay; recurrent layers are stored in 8 bits."""
    model = graphs.prepare(source, folder)
    graph = model.graph
    graphs.split_gemm(graph)
    tensors = graphs.constants(graph)
    table_of = {factor: table for table, factor in graphs.twins(graph).items()}
    looked_up = {node.output[0] for node in graphs.lookups(graph)}
    packed: dict[str, int] = {}
    shared: set[str] = set()
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul" and _is_matrix(tensors.get(node.input[1])):
            name = table_of.get(node.input[1], node.input[1])
            rows = graphs.array_of(tensors[name]) if name in table_of.values() else graphs.array_of(tensors[name]).T
            if name not in packed:
                packed[name] = _pack(graph, rows, name)
            if name in table_of.values() and rows.shape[1] % packed[name] == 0:
                shared.add(name)
            nodes.append(_product(node, name, rows, packed[name]))
        else:
            nodes.append(node)
    nodes = [
        each
        for node in nodes
        for each in (_lookup(graph, node, tensors, packed, shared) if node.output[0] in looked_up else [node])
    ]
    graphs.replace_nodes(graph, nodes)
    store_tables(model)
    store_others(model)
    graphs.use_domain(model, _DOMAIN)
    return model, {"weights": "int4", "activations": "float32", "blocks": sorted(set(packed.values()))}


def _is_matrix(tensor: Any) -> bool:
    return tensor is not None and graphs.is_float(tensor) and len(tensor.dims) == 2


def _product(node: Any, name: str, rows: np.ndarray, block: int) -> Any:
    from onnx import helper

    options = {"K": rows.shape[1], "N": rows.shape[0], "bits": 4, "block_size": block}
    inputs = [node.input[0], f"{name}_packed", f"{name}_scale"]
    return helper.make_node("MatMulNBits", inputs, node.output, node.name, domain=_DOMAIN, **options)


def _lookup(graph: Any, node: Any, tensors: dict[str, Any], packed: dict[str, int], shared: set[str]) -> list[Any]:
    """The nodes that look rows up in a 4-bit table; a product with the same weights uses the same bytes."""
    from onnx import helper, numpy_helper

    name = node.input[0]
    rows = graphs.array_of(tensors[name])
    if rows.shape[1] % 2:
        return [node]  # half a byte would be left of each row
    block, table, scale = _block(rows.shape[1]), f"{name}_table", f"{name}_scale"
    known = {tensor.name for tensor in graph.initializer}
    nodes = []
    if name in shared:
        block = packed[name]
        if f"{name}_shape" not in known:
            shape = np.array([rows.shape[0], rows.shape[1] // 2], np.int64)
            graph.initializer.append(numpy_helper.from_array(shape, f"{name}_shape"))
        table = f"{node.output[0]}_table"
        nodes.append(helper.make_node("Reshape", [f"{name}_packed", f"{name}_shape"], [table]))
    elif table not in known:
        integers, scales = blockwise(rows, block)
        halves = _halves(integers.reshape(len(rows), -1)[:, : rows.shape[1]])
        graph.initializer.append(numpy_helper.from_array(halves, table))
        if scale not in known:
            graph.initializer.append(numpy_helper.from_array(scales, scale))
    options = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table, node.input[1], scale]
    return [
        *nodes,
        helper.make_node("GatherBlockQuantized", inputs, node.output, node.name, domain=_DOMAIN, **options),
    ]


def _pack(graph: Any, rows: np.ndarray, name: str) -> int:
    """Puts the packed integers (rows, blocks, block / 2) and scales (rows, blocks) into the graph; gives the block."""
    from onnx import numpy_helper

    block = _block(rows.shape[1])
    integers, scales = blockwise(rows, block)
    graph.initializer.append(numpy_helper.from_array(_halves(integers), f"{name}_packed"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
    return block


def _block(width: int) -> int:
    """The length that takes least bytes, scales and padding included."""
    return min(_BLOCKS, key=lambda block: -(-width // block) * (block // 2 + 4))


def blockwise(rows: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers 0 … 15 (rows, blocks, block), uint8, and scales (rows, blocks): w ≈ (integer - 8) · scale.

    Args:
        rows: weights (rows, width); the last block is filled up with zeros.
    """
    count = -(-rows.shape[1] // block)
    padded = np.zeros((len(rows), count * block), np.float32)
    padded[:, : rows.shape[1]] = rows
    blocks = padded.reshape(len(rows), count, block)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    best = np.where(largest > 0, largest / 7.0, 1.0).astype(np.float32)
    least = np.full_like(best, np.inf)
    for shrink in _SHRINKS:
        scale = np.where(largest > 0, largest * shrink / 7.0, 1.0).astype(np.float32)
        loss = ((np.clip(np.rint(blocks / scale), -8, 7) * scale - blocks) ** 2).sum(axis=2, keepdims=True)
        better = loss < least
        best, least = np.where(better, scale, best), np.where(better, loss, least)
    integers = np.clip(np.rint(blocks / best), -8, 7) + 8
    return integers.astype(np.uint8), np.ascontiguousarray(best[..., 0])


def _halves(integers: np.ndarray) -> np.ndarray:
    """Two integers a byte, the first in its lower half."""
    return np.ascontiguousarray(integers[..., 0::2] | (integers[..., 1::2] << 4))
