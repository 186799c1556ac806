"""Fewer bits a weight: a float ONNX file in, a quantized ONNX file out.

Which scheme is faster than float is a matter of model and processor; nothing here claims that any is. See
docs/quantization.md.
"""

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jobs.compress.four_bits import int4_weight
from jobs.compress.graphs import WEIGHTED
from jobs.compress.halves import bf16, fp16
from jobs.compress.integers import dynamic
from jobs.compress.static_search import Search, int8_static
from jobs.compress.stored import store_others, store_tables
from jobs.compress.trim import trim
from jobs.errors import ArtifactError, DataError, QuantizationFailed
from jobs.measure.probe import check_runs
from jobs.measure.session import load_proto, predictions
from jobs.storage import atomic_path

_PRODUCTS = frozenset({*WEIGHTED, "GRU", "LSTM", "RNN"})
_INTEGER_PRODUCTS = frozenset({"ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger", "MatMulNBits"})
_COMPARED = 4
"""Samples whose outputs are compared with those in a process that knows ONNX Runtime and NumPy alone."""
_LOOKUPS = frozenset({"Gather", "GatherBlockQuantized"})


def quantize_onnx(
    source: Path, destination: Path, scheme: str, calibration: np.ndarray, *, search: Search | None = None
) -> dict[str, Any]:
    """Writes `source` with fewer bits a weight to `destination`, atomically. Input and output keep their types.

    - int8_static: weights 8-bit or 7-bit signed, activations 8-bit, scaled by what calibration has shown; QDQ
      format. What lies between products with weights stays in float32 where there is attention or layer
      normalization. With `search`, several variants are measured, and the table of them is in `settings.tried`.
    - int8_dynamic: weights 7-bit signed a tensor, 8-bit unsigned in a model with convolutions; activations are scaled
      anew in each run. Products of two activations, as in attention, stay in float32.
    - int4_weight: the weights of matrix products and embeddings in 4 bits, in blocks; activations in float32.
    - all three: tables of embeddings take 8 bits or fewer, recurrent weights and learnt positions are stored in 8.
    - fp16: weights and activations in half precision. On a CPU without kernels for it, the runtime computes in
      float32 with the rounded weights: what is measured there is neither the speed nor the overflow of half precision.
    - bf16: weights stored as bfloat16, and float32 in use: size alone.

    Args:
        source: a float32 ONNX file; its input may be int64.
        destination: the file to write.
        scheme: one of the above.
        calibration: encoded samples (n, *input_shape) of the training split.
        search: how int8_static looks for its variant; without it, the first one is taken.

    Returns:
        What was done, as JSON: `scheme`, `settings`, `quantized_nodes` (matrix products, convolutions and recurrent
        layers whose weights have fewer bits), `float_nodes` (those in float32), `nodes` (how many of each operator).

    Raises:
        DataError: no calibration samples.
        QuantizationFailed: the scheme finds nothing to quantize, or the result does not run, or not to finite numbers.
        ArtifactError: `source` is damaged.
    """
    if len(calibration) == 0:
        raise DataError.at("data.split.calibration", "quantization needs calibration samples", 0, "at least 1")
    original = load_proto(source)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model, settings = _made(source, Path(folder), scheme, calibration, search)
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        # What the tools raise for operators that they do not know how to quantize.
        raise QuantizationFailed(
            f"{scheme} does not suit this model: {type(error).__name__} {error}".strip()
        ) from error
    return write_quantized(model, original, destination, scheme, settings, calibration)


def _made(
    source: Path, folder: Path, scheme: str, calibration: np.ndarray, search: Search | None
) -> tuple[Any, dict[str, Any]]:
    match scheme:
        case "int8_static":
            return int8_static(source, folder, calibration, search)
        case "int8_dynamic":
            model, settings = dynamic(source, folder)
            store_tables(model)
            store_others(model)
            return model, settings
        case "int4_weight":
            return int4_weight(source, folder)
        case "fp16":
            return fp16(source)
        case "bf16":
            return bf16(source)
    raise ValueError(f"unknown scheme {scheme!r}")


def write_quantized(
    model: Any,
    original: Any,
    destination: Path,
    scheme: str,
    settings: dict[str, Any],
    samples: np.ndarray,
) -> dict[str, Any]:
    """Trims a quantized model, checks that it runs, and writes it; returns and raises what `quantize_onnx` does."""
    trim(model)
    quantized, kept, tables = count_quantized(model.graph, halves=scheme == "fp16")
    if quantized + tables == 0:
        raise QuantizationFailed(
            f"{scheme}: the model has no convolution or matrix product, nor a table of embeddings, to quantize"
        )
    model.metadata_props.extend(original.metadata_props)
    with atomic_path(destination) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        _check(temporary, scheme, samples)
    return {
        "scheme": scheme,
        "settings": {**settings, "calibration_sha256": _digest(samples)},
        "quantized_nodes": quantized,
        "float_nodes": kept,
        "nodes": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    }


def count_quantized(graph: Any, *, halves: bool = False) -> tuple[int, int, int]:
    """Products with quantized factors, products in float32, and lookups in quantized tables.

    With `halves`, all that is not a constant counts as half precision.
    """
    from onnx import TensorProto

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    small = {name for name, kind in types.items() if kind not in (TensorProto.FLOAT, TensorProto.INT64)}
    made = {node.output[0]: node for node in graph.node}
    quantized = kept = tables = 0

    def has_few_bits(name: str) -> bool:
        while name in made and made[name].op_type in ("Cast", "DequantizeLinear", "Reshape", "Transpose"):
            if made[name].op_type == "DequantizeLinear" and made[name].input[0] not in types:
                return True  # an activation, which was quantized before
            name = made[name].input[0]
        return name in small or (halves and name not in types)

    for node in graph.node:
        if node.op_type in _INTEGER_PRODUCTS:
            quantized += 1
        elif node.op_type in _PRODUCTS:
            done = has_few_bits(node.input[1])
            quantized, kept = quantized + done, kept + (not done)
        elif node.op_type in _LOOKUPS:
            tables += has_few_bits(node.input[0]) and node.input[0] not in (value.name for value in graph.input)
    return quantized, kept, tables


def _digest(samples: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()


def _check(path: Path, scheme: str, samples: np.ndarray) -> None:
    try:
        elsewhere = check_runs(path, samples[:_COMPARED])
        here = np.concatenate(list(predictions(path, samples[:_COMPARED])))
        finite = all(np.isfinite(outputs).all() for outputs in predictions(path, samples))
    except ArtifactError as error:
        raise QuantizationFailed(f"{scheme}: the quantized model does not run on this machine: {error}") from error
    if not finite:
        raise QuantizationFailed(f"{scheme}: outputs of the quantized model are not finite on calibration samples")
    if not np.allclose(here, elsewhere, rtol=1e-5, atol=1e-5):
        raise QuantizationFailed(f"{scheme}: the quantized model gives other outputs in a process of its own")
