"""How fast this machine multiplies in each number format, through the runtime that serves models.

Two small models an operator and a format; what is counted are 2 operations a multiply-accumulate.
"""

import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jobs.errors import ArtifactError
from jobs.measure.latency import latencies
from jobs.measure.probe import check_runs

_ROWS, _WIDTH = 64, 512
_CHANNELS, _SIDE = 64, 28
_SECONDS = 0.15
FORMATS = ("fp32", "int8", "fp16")


def throughput(num_threads: int = 1) -> dict[str, dict[str, float | None]]:
    """Billions of operations a second: `gemm` (64×512 by 512×512) and `conv` (64 channels, 3×3, 28×28).

    By operator and format (fp32, int8, fp16); None where the runtime has no such kernel here. About 2 s.
    """
    found: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for operator, shape in (("gemm", (_WIDTH,)), ("conv", (_CHANNELS, _SIDE, _SIDE))):
            found[operator] = dict.fromkeys(FORMATS)
            batch = _ROWS if operator == "gemm" else 1
            x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
            files = dict(_files(Path(folder), operator, x))
            if not files:
                continue
            timed = latencies(files, x, batch_sizes=(batch,), num_threads=num_threads, seconds_per_file=_SECONDS)
            macs = batch * (_WIDTH**2 if operator == "gemm" else _CHANNELS**2 * 9 * prod(shape[1:]))
            for name, by_batch in timed.items():
                found[operator][name] = round(2 * macs / (by_batch[f"batch_{batch}"].p50 * 1e-3) / 1e9, 2)
    return found


def _files(folder: Path, operator: str, x: np.ndarray) -> Iterator[tuple[str, Path]]:
    for name in FORMATS:
        path = folder / f"{operator}-{name}.onnx"
        path.write_bytes(_model(operator, name).SerializeToString())
        try:
            check_runs(path, x)
        except ArtifactError:
            continue  # no kernel for it here
        yield name, path


def _model(operator: str, name: str) -> Any:
    """float32 in, float32 out; the product itself in the format."""
    from onnx import TensorProto, helper, numpy_helper

    shape = [_WIDTH] if operator == "gemm" else [_CHANNELS, _SIDE, _SIDE]
    rng = np.random.default_rng(0)
    size = (_WIDTH, _WIDTH) if operator == "gemm" else (_CHANNELS, _CHANNELS, 3, 3)
    weight = rng.standard_normal(size).astype(np.float32)
    kind = "MatMul" if operator == "gemm" else "Conv"
    options = {} if operator == "gemm" else {"pads": [1, 1, 1, 1]}
    one, zero, signed = np.float32(0.05), np.uint8(128), np.int8(0)
    tensors = {"s": np.array(one), "z": np.array(zero), "t": np.array(signed)}
    if name == "int8":
        tensors["w"] = rng.integers(-63, 64, size).astype(np.int8)
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
            helper.make_node(f"QLinear{kind}", ["q", "s", "z", "w", "s", "t", "s", "z"], ["p"], **options),
            helper.make_node("DequantizeLinear", ["p", "s", "z"], ["output"]),
        ]
    elif name == "fp16":
        tensors = {"w": weight.astype(np.float16)}
        nodes = [
            helper.make_node("Cast", ["input"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node(kind, ["h", "w"], ["p"], **options),
            helper.make_node("Cast", ["p"], ["output"], to=TensorProto.FLOAT),
        ]
    else:
        tensors = {"w": weight}
        nodes = [helper.make_node(kind, ["input", "w"], ["output"], **options)]
    graph = helper.make_graph(
        nodes,
        "throughput",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *shape])],
        [numpy_helper.from_array(value, tensor) for tensor, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
