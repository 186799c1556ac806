"""ONNX Runtime sessions: the runtime that serves a model is the one that measures it."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import ArtifactError
from jobs.exchange import share
from jobs.measure.outputs import condense

if TYPE_CHECKING:
    import onnxruntime

_BATCH = 256
_BATCH_BYTES = 64 << 20
"""Outputs that a batch may have: the logits of a language model are a thousand times its input."""
_INPUT_TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def open_session(path: Path, num_threads: int = 1, *, exact: bool = False) -> "onnxruntime.InferenceSession":
    """Opens a model file on the CPU. Raises ArtifactError if it is missing, damaged, or cannot run here.

    With `exact`, sums of 8-bit products do not saturate on x86 processors without VNNI either; it costs time.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise ArtifactError(f"{path} is no model that can run here: {error}") from error


def load_proto(path: Path) -> Any:
    """Reads a model file as an onnx.ModelProto. Raises ArtifactError if it is missing or damaged."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except (DecodeError, FileNotFoundError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from error


def predict(path: Path, x: np.ndarray, batch_size: int = _BATCH, num_threads: int = 1) -> np.ndarray:
    """The outputs (n, …) of a model file for encoded samples `x` (n, *input_shape), float32 or int64.

    Those of a language model are too many for more than a few samples: see `predict_condensed`.

    Raises:
        ArtifactError: the file is damaged, or takes samples of another shape or type.
    """
    return np.concatenate(list(predictions(path, x, batch_size, num_threads)))


def predict_condensed(
    path: Path,
    x: np.ndarray,
    targets: np.ndarray,
    batch_size: int = _BATCH,
    num_threads: int = 1,
    *,
    exact: bool = False,
) -> np.ndarray:
    """What the metrics need of the outputs, (n, …), condensed batch by batch: see `condense`; errors as `predict`."""
    return ModelFile(path, num_threads, exact=exact).condensed(x, targets, batch_size)


def largest_difference(path: Path, other: Path, x: np.ndarray, num_threads: int = 1) -> float:
    """By how much the outputs of two model files differ at most on samples `x`; errors as `predict`."""
    both = (predictions(file, x, num_threads=num_threads) for file in (path, other))
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(*both, strict=True))


def predictions(
    path: Path, x: np.ndarray, batch_size: int = _BATCH, num_threads: int = 1, *, exact: bool = False
) -> Iterator[np.ndarray]:
    """The outputs of `predict` batch by batch; batches are smaller where the outputs are large: see `batch_within`."""
    return ModelFile(path, num_threads, exact=exact).predictions(x, batch_size)


class ModelFile:
    """An opened model file. Raises ArtifactError if it is damaged, or cannot run here."""

    def __init__(self, path: Path, num_threads: int = 1, *, exact: bool = False) -> None:
        self.path = path
        self.session = open_session(path, num_threads, exact=exact)
        self._name, self._dtype = self.session.get_inputs()[0].name, _input_type(self.session, path)

    def share(self, sample: np.ndarray, count: int, index: int, shares: int) -> range:
        """Which of `count` samples one of several workers predicts on: whole batches of those that one would make.

        So together they give what one process gives, to the bit: another batch may be another order of summation, and
        dynamic quantization takes its scale from the batch.

        Args:
            sample: one of them, or several (n, *input_shape).
        """
        size = batch_within(self.session, sample, _BATCH)
        batches = share(-(-count // size), index, shares)
        return range(min(count, batches.start * size), min(count, batches.stop * size))

    def predictions(self, x: np.ndarray, batch_size: int = _BATCH) -> Iterator[np.ndarray]:
        """See the function of this name. Raises ArtifactError for samples of another shape or type."""
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        if self._dtype == np.int64 and x.dtype.kind not in "iu":
            raise ArtifactError(f"{self.path} takes integers, and does not take samples of {x.dtype}")
        size = batch_within(self.session, x, batch_size)
        # An empty `x` runs once, so that the result still has the right number of columns.
        for first in range(0, max(len(x), 1), size):
            samples = np.ascontiguousarray(x[first : first + size], dtype=self._dtype)
            try:
                outputs = self.session.run(None, {self._name: samples})[0]
            except (state.Fail, state.InvalidArgument, state.RuntimeException) as error:
                raise ArtifactError(f"{self.path} does not take samples of shape {x.shape[1:]}: {error}") from error
            yield outputs

    def condensed(self, x: np.ndarray, targets: np.ndarray, batch_size: int = _BATCH) -> np.ndarray:
        """See `predict_condensed`."""
        kept, first = [], 0
        for outputs in self.predictions(x, batch_size):
            kept.append(condense(outputs, targets[first : first + len(outputs)]))
            first += len(outputs)
        return np.concatenate(kept)


def _input_type(session: "onnxruntime.InferenceSession", path: Path) -> type[np.generic]:
    source = session.get_inputs()[0]
    if source.type not in _INPUT_TYPES:
        raise ArtifactError(f"{path} takes {source.type}, which no encoded samples are")
    return _INPUT_TYPES[source.type]


def batch_within(session: "onnxruntime.InferenceSession", x: np.ndarray, batch_size: int) -> int:
    """How many of the samples `x` to run at once: `batch_size`, or as many as give outputs of 64 MiB; at least one."""
    return max(1, min(batch_size, _BATCH_BYTES // max(1, output_bytes(session, x))))


def output_bytes(session: "onnxruntime.InferenceSession", x: np.ndarray) -> int:
    """Bytes of the outputs for one of the samples `x`."""
    shape = session.get_outputs()[0].shape[1:]
    # A free dimension beside the batch is that of the steps.
    return np.float32().itemsize * prod(dim if isinstance(dim, int) else x.shape[1] for dim in shape)
