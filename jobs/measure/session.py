"""ONNX Runtime sessions: the runtime that serves a model is the one that measures it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import ArtifactError

if TYPE_CHECKING:
    import onnxruntime


def open_session(path: Path, num_threads: int = 1) -> "onnxruntime.InferenceSession":
    """Opens a model file on the CPU. Raises ArtifactError if it is missing, damaged, or cannot run here."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
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


def predict(path: Path, x: np.ndarray, batch_size: int = 256, num_threads: int = 1) -> np.ndarray:
    """The outputs (n, …) of a model file for encoded samples `x` (n, *input_shape), float32.

    Raises:
        ArtifactError: the file is damaged, or takes samples of another shape.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    session = open_session(path, num_threads)
    name = session.get_inputs()[0].name
    samples = np.ascontiguousarray(x, dtype=np.float32)
    outputs = []
    try:
        # An empty `x` runs once, so that the result still has the right number of columns.
        for first in range(0, max(len(samples), 1), batch_size):
            outputs.append(session.run(None, {name: samples[first : first + batch_size]})[0])
    except (state.Fail, state.InvalidArgument, state.RuntimeException) as error:
        raise ArtifactError(f"{path} does not take samples of shape {x.shape[1:]}: {error}") from error
    return np.concatenate(outputs)
