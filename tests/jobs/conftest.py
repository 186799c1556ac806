"""A language model as an ONNX file, made by hand: what measuring and quantization meet, without torch."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, STEPS = 64, 32, 12


def _write_language_model(path: Path) -> None:
    """tokens (batch, steps) → an embedding, causal attention with a residual branch, the embedding again → logits."""
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((VOCABULARY, WIDTH))
    weights = {
        "embedding": embedding,
        "gain": 1.0 + 0.1 * rng.standard_normal(WIDTH),
        "shift": 0.1 * rng.standard_normal(WIDTH),
        **{name: rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5 for name in ("query", "key", "value")},
    }
    constants = {
        "first": np.array(0),
        "one": np.array(1),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "scale": np.array([WIDTH**-0.5], dtype=np.float32),
        "minus_infinity": np.array(-np.inf, dtype=np.float32),
    }
    nodes = [
        helper.make_node(operator, inputs.split(), [output], name=f"node_{output}", **attributes)
        for operator, inputs, output, attributes in (
            ("Gather", "embedding input", "embedded", {}),
            ("LayerNormalization", "embedded gain shift", "normalized", {}),
            ("MatMul", "normalized query", "queries", {}),
            ("MatMul", "normalized key", "keys", {}),
            ("MatMul", "normalized value", "values", {}),
            ("Transpose", "keys", "keys_transposed", {"perm": [0, 2, 1]}),
            ("MatMul", "queries keys_transposed", "products", {}),
            ("Mul", "products scale", "scores", {}),
            ("Shape", "input", "length", {"start": 1}),
            ("Squeeze", "length axis0", "steps", {}),
            ("Range", "first steps one", "range", {}),
            ("Unsqueeze", "range axis1", "rows", {}),
            ("Unsqueeze", "range axis0", "columns", {}),
            ("LessOrEqual", "columns rows", "seen", {}),
            ("Where", "seen scores minus_infinity", "masked", {}),
            ("Softmax", "masked", "shares", {}),
            ("MatMul", "shares values", "mixed", {}),
            ("Add", "embedded mixed", "hidden", {}),
            ("Transpose", "embedding", "classifier", {"perm": [1, 0]}),
            ("MatMul", "hidden classifier", "output", {}),
        )
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "language_model",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "steps"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "steps", VOCABULARY])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="session")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int64 (batch, steps) → float32 (batch, steps, 64); the embedding of 64 × 32 is the classifier too."""
    path = tmp_path_factory.mktemp("language") / "model.onnx"
    _write_language_model(path)
    return path


@pytest.fixture(scope="session")
def texts() -> tuple[np.ndarray, np.ndarray]:
    """64 texts of 5 to 12 tokens: x (64, 12), 0 beyond the end, and the next token of each step, or -100."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, VOCABULARY, size=(64, STEPS + 1))
    lengths = rng.integers(5, STEPS + 1, size=(64, 1))
    steps = np.arange(STEPS)
    return np.where(steps < lengths, tokens[:, :-1], 0), np.where(steps < lengths - 1, tokens[:, 1:], -100)
