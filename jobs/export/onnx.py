"""A torch module as an ONNX file with a free batch dimension, and free steps where there are any."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import JobFailed
from jobs.records import Signature
from jobs.storage import atomic_path

if TYPE_CHECKING:
    import torch
    from torch import nn

_EXAMPLE_BATCH = 2  # torch.export takes an example dimension of 1 for a constant


def export_onnx(model: "nn.Module", signature: Signature, path: Path, metadata: dict[str, str]) -> None:
    """Writes `model` to `path`, atomically; the same model gives the same bytes.

    The graph takes `input` (batch, *input_shape), int64 for tokens and codes and float32 for all else, and gives
    `output` (batch, *output_shape). Any batch size goes, and for tokens and sequences any number of `steps`, unless
    the model fixes it. The weights are inside the file. The model itself is left as it is: a copy is exported, in
    evaluation mode.

    Args:
        model: any module with one input and one output.
        signature: what goes in and comes out.
        path: the file to write.
        metadata: stored as the file's metadata properties.

    Raises:
        JobFailed: the module uses something that ONNX cannot express, or fixes the batch size.
    """
    from jobs.export.recurrence import with_onnx_layers

    exportable = with_onnx_layers(copy.deepcopy(model).float().cpu().eval())
    free_steps = signature.kind in ("tokens", "sequence")
    proto = _trace(exportable, signature, type(model).__name__, free_steps=free_steps)
    if free_steps and not _takes_fewer_steps(proto, signature):
        proto = _trace(exportable, signature, type(model).__name__, free_steps=False)
    _strip(proto)
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _trace(model: "nn.Module", signature: Signature, name: str, *, free_steps: bool) -> Any:
    import torch

    free = {0: torch.export.Dim.DYNAMIC}
    if free_steps:
        free[1] = torch.export.Dim.AUTO  # fixed where the model fixes it
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (_zeros(signature, signature.input_shape),),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise JobFailed(
            f"the model {name} cannot be exported to ONNX with a free batch dimension: {cause[:500]}"
        ) from error
    assert program is not None
    proto = program.model_proto
    _name_dimensions(proto.graph, signature, name)
    return proto


def _zeros(signature: Signature, shape: tuple[int, ...]) -> "torch.Tensor":
    import torch

    return torch.zeros(_EXAMPLE_BATCH, *shape, dtype=getattr(torch, signature.input_dtype))


def _takes_fewer_steps(proto: Any, signature: Signature) -> bool:
    """Whether the file really takes another number of steps: what the tracer says of layers it unrolls is not so."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    steps, *features = signature.input_shape
    if steps == 1:
        return False
    sample = _zeros(signature, (steps // 2, *features))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        (output,) = session.run(None, {"input": sample.numpy()})
    except (state.Fail, state.InvalidArgument, state.RuntimeException):
        return False
    return len(output) == _EXAMPLE_BATCH


def _name_dimensions(graph: Any, signature: Signature, name: str) -> None:
    """Gives the free dimensions names that people can read."""
    for value in (*graph.input, *graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value"):
            raise JobFailed(
                f"the model {name} fixes its batch size to {batch.dim_value}: write its forward() for any batch size"
            )
        batch.dim_param = "batch"
    if signature.kind in ("tokens", "sequence"):
        for value in (*graph.input, *(graph.output if signature.per_step else ())):
            steps = value.type.tensor_type.shape.dim[1]
            if not steps.HasField("dim_value"):
                steps.dim_param = "steps"


def _strip(proto: Any) -> None:
    # The exporter leaves a stack trace at every node: paths of this machine, and kilobytes that are no model.
    # Intermediate shapes go too: the runtime infers them, and they would count as bytes.
    graph = proto.graph
    graph.ClearField("value_info")
    proto.ClearField("metadata_props")
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
