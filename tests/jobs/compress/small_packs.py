"""A small model's three files, made by hand: convolution with batch normalization, products, whatever a pack knows."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from jobs.compress.pack import pack_files


def sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float, levels: int = 8) -> np.ndarray:
    """Zeros and at most 2 · levels multiples of 1/64."""
    values = rng.integers(-levels, levels + 1, size=shape) / 64.0
    return np.where(rng.random(shape) < density, values, 0.0).astype(np.float32)


def small_files(seed: int = 0) -> dict[str, bytes]:
    """Its tensors are of every kind but gaps, its initializers from every source."""
    rng = np.random.default_rng(seed)
    stored: dict[str, np.ndarray] = {
        "conv.weight": sparse(rng, (4, 1, 3, 3), 0.4),
        "norm.weight": (1.0 + rng.standard_normal(4) / 8).astype(np.float16).astype(np.float32),
        "norm.bias": (rng.integers(-100, 100, 4) / 256.0).astype(np.float32),
        "norm.running_mean": rng.standard_normal(4).astype(np.float32),
        "norm.running_var": (1.0 + rng.random(4)).astype(np.float32),
        "norm.num_batches_tracked": np.array(12, np.int64),
        "linear.weight": sparse(rng, (24, 36), 0.1),
        "linear.bias": (rng.integers(-100, 100, 24) / 256.0).astype(np.float32),
        "output.weight": sparse(rng, (5, 24), 0.2),
    }
    factor = stored["norm.weight"] / np.sqrt(stored["norm.running_var"] + np.float32(1e-5))
    zeros = np.zeros(4, np.float32)
    weights = {
        "conv.weight": stored["conv.weight"] * factor.reshape(4, 1, 1, 1),
        "conv.weight_bias": (zeros - stored["norm.running_mean"]) * factor + stored["norm.bias"],
        "linear.weight": stored["linear.weight"],
        "linear.bias": stored["linear.bias"],
        "shape": np.array([-1, 36], np.int64),
        "matrix": np.ascontiguousarray(stored["output.weight"].T),
        "shift": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.weight_bias"], ["maps"], kernel_shape=[3, 3]),
        helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "linear.weight", "linear.bias"], ["hidden"], transB=1),
        helper.make_node("MatMul", ["hidden", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "shift"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 5, 5])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return {
        "model.safetensors": save(stored),
        "model.json": json.dumps({"model": {"name": "small"}}, indent=2).encode(),
        "model.onnx": model.SerializeToString(deterministic=True),
    }


def small_pack() -> bytes:
    return pack_files(small_files())
