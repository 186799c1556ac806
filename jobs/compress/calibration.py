"""The ranges of a model's activations on calibration samples: what 8 bits are spread over.

Three ways, all from one pass over the smallest and largest values and one over histograms:

- minmax: from the smallest to the largest value seen.
- percentile: without the outermost 0.005 % of the values at either end.
- entropy: clipped at the magnitude whose rounding to 8 bits loses least information, by the Kullback-Leibler
  divergence of the rounded histogram from the whole one (Migacz 2017, "8-bit inference with TensorRT").

Zero is always within: it must be exact, since padding is of zeros (Jacob et al. 2018).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jobs.measure.session import batch_within, open_session

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy")
Ranges = dict[str, tuple[float, float]]

_BATCH = 64
_BATCH_BYTES = 256 << 20
_BINS = 2048
_MOST_COUNTED = 1 << 18
"""Values of a tensor that a batch adds to its histogram: every so many-th, where there are more."""
_LEVELS = 128
"""Of the magnitude, in the entropy of 8 bits with a sign."""
_TAIL = 5e-5


def calibrate(model: Any, samples: np.ndarray) -> dict[Method, Ranges]:
    """By way and by name, the (lowest, highest) value that each float tensor of the graph is given room for.

    Args:
        model: an onnx.ModelProto with inferred shapes.
        samples: encoded samples (n, *input_shape).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        names = _observe(model, path)
        lows, highs = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for name, values in _values(path, names, samples):
            finite = values[np.isfinite(values)]  # minus infinity is in masks
            if finite.size:
                lows[name] = min(lows[name], float(finite.min()))
                highs[name] = max(highs[name], float(finite.max()))
        counts = {name: np.zeros(_BINS, np.int64) for name in names}
        for name, values in _values(path, names, samples):
            if lows[name] < highs[name]:
                some = values.reshape(-1)[:: -(-values.size // _MOST_COUNTED)]
                counts[name] += np.histogram(some, _BINS, (lows[name], highs[name]))[0]
    whole = {name: (lows[name], highs[name]) for name in names}
    return {
        "minmax": whole,
        "percentile": {name: _percentile(counts[name], *whole[name]) for name in names},
        "entropy": {name: _entropy(counts[name], *whole[name]) for name in names},
    }


def _observe(model: Any, path: Path) -> list[str]:
    """Writes the model with all its float tensors as outputs, and gives their names."""
    import onnx
    from onnx import TensorProto

    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    made = [name for node in graph.node for name in node.output if kinds.get(name) == TensorProto.FLOAT]
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    known = {value.name for value in graph.output}
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in known)
    path.write_bytes(observed.SerializeToString())
    inputs = [v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    return [*inputs, *dict.fromkeys(made)]


def _values(path: Path, names: list[str], samples: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    session = open_session(path)
    source = session.get_inputs()[0].name
    inner = [name for name in names if name != source]
    one = session.run(inner, {source: samples[:1]})
    each = max(1, sum(value.nbytes for value in one))
    size = min(batch_within(session, samples, _BATCH), max(1, _BATCH_BYTES // each))
    for first in range(0, len(samples), size):
        batch = np.ascontiguousarray(samples[first : first + size])
        if source in names:
            yield source, batch
        yield from zip(inner, session.run(inner, {source: batch}), strict=True)


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    total = counts.sum()
    if total == 0:
        return low, high
    edges = np.linspace(low, high, _BINS + 1)
    share = np.cumsum(counts) / total
    first, last = int(np.searchsorted(share, _TAIL)), int(np.searchsorted(share, 1.0 - _TAIL))
    return min(0.0, float(edges[first])), max(0.0, float(edges[min(last + 1, _BINS)]))


def _entropy(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    if counts.sum() == 0:
        return low, high
    centers = np.abs(low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS)
    largest = max(-low, high)
    places = np.minimum((centers / largest * _BINS).astype(np.int64), _BINS - 1)
    magnitudes = np.bincount(places, counts, _BINS)
    magnitudes[0] = 0  # exact zeros, as relu makes, would drown all else
    if magnitudes.sum() == 0:
        return low, high
    ends = np.arange(_LEVELS, _BINS + 1, 16)
    losses = [_divergence(magnitudes, int(end)) for end in ends]
    limit = largest * float(ends[int(np.argmin(losses))]) / _BINS
    return max(low, -limit), min(high, limit)


def _divergence(counts: np.ndarray, end: int) -> float:
    """Of the histogram cut off at `end` and rounded to as many levels as there are, from the one that is only cut."""
    kept = counts[:end].astype(np.float64)
    expected = kept.copy()
    expected[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    filled = kept > 0
    sums = np.bincount(level, kept, _LEVELS)
    spread = np.bincount(level, filled, _LEVELS)
    rounded = np.where(filled, (sums / np.maximum(spread, 1))[level], 0.0)
    p, q = expected / expected.sum(), rounded / max(rounded.sum(), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
