from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def _write_mlp(path: Path, weights: list[np.ndarray]) -> Path:
    """x → Gemm → Relu → … → Gemm, without biases, from weights (inputs, outputs)."""
    nodes, initializers, last = [], [], "input"
    for index, weight in enumerate(weights):
        name = "output" if index == len(weights) - 1 else f"hidden{index}"
        initializers.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Gemm", [last, f"w{index}"], [name]))
        if name != "output":
            nodes.append(helper.make_node("Relu", [name], [f"relu{index}"]))
        last = f"relu{index}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", weights[0].shape[0]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", weights[-1].shape[1]])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def write_mlp() -> Callable[[Path, list[np.ndarray]], Path]:
    return _write_mlp


@pytest.fixture
def mlp_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return _write_mlp(tmp_path / "mlp.onnx", [rng.standard_normal((8, 16)), rng.standard_normal((16, 3))])
