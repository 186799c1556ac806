"""Weights in 16 bits: half precision, and bfloat16 as a way of storing."""

from pathlib import Path
from typing import Any

import numpy as np

from jobs.compress import graphs
from jobs.compress.graphs import WEIGHTED

# In half precision these have no CPU kernel, or a fused one that crashes.
_KEPT_FLOAT = ("Gelu", "LayerNormalization")


def fp16(source: Path) -> tuple[Any, dict[str, Any]]:
    """Weights and activations in half precision; the inputs and outputs of the model keep their types."""
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


def bf16(source: Path) -> tuple[Any, dict[str, Any]]:
    """Weights stored as bfloat16, rounded to the nearest, and turned into float32 when the file is opened."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    graph = model.graph
    restored = []
    for tensor in graph.initializer:
        if not graphs.is_float(tensor) or len(tensor.dims) < 1 or np.prod(tensor.dims) < 2:
            continue
        name, stored = tensor.name, f"{tensor.name}_stored"
        bits = _rounded(graphs.array_of(tensor))
        tensor.CopyFrom(helper.make_tensor(stored, TensorProto.BFLOAT16, tensor.dims, bits.tobytes(), raw=True))
        restored.append(helper.make_node("Cast", [stored], [name], f"{name}_float", to=TensorProto.FLOAT))
    graphs.replace_nodes(graph, [*restored, *graph.node])
    return model, {"weights": "bfloat16", "activations": "float32"}


def _rounded(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32 values, rounded to the nearest, ties to even."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _swaps_before_products(graph: Any) -> list[str]:
    """Names of the transpositions that a matrix product takes directly, and that leave its rows whole.

    The product's kernel takes float32. Where a cast lies in between, as after recurrence that has the steps first,
    ONNX Runtime 1.32 tries to swap the two (MatmulTransposeFusion), and the process dies.
    """
    factors = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input}
    names = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.output[0] in factors:
            order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
            if order and order[-1] == len(order) - 1:
                names.append(node.name)
    return names
