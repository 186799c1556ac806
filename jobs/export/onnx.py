"""A torch module as an ONNX file with a free batch dimension."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import JobFailed
from jobs.storage import atomic_path

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE_BATCH = 2  # torch.export takes an example dimension of 1 for a constant


def export_onnx(model: "nn.Module", input_shape: tuple[int, ...], path: Path, metadata: dict[str, str]) -> None:
    """Writes `model` to `path`, atomically; the same model gives the same bytes.

    The graph takes `input`, float32 (batch, *input_shape), and gives `output`, (batch, …); any batch size goes.
    The weights are inside the file. The model itself is left as it is: a copy is exported, in evaluation mode.

    Args:
        model: any module with one input and one output.
        input_shape: of one sample.
        path: the file to write.
        metadata: stored as the file's metadata properties.

    Raises:
        JobFailed: the module uses something that ONNX cannot express, or fixes the batch size.
    """
    import torch

    exportable = copy.deepcopy(model).to("cpu", torch.float32).eval()
    example = torch.zeros(_EXAMPLE_BATCH, *input_shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                exportable,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise JobFailed(
            f"the model {type(model).__name__} cannot be exported to ONNX with a free batch dimension: {cause[:500]}"
        ) from error
    assert program is not None
    proto = program.model_proto
    _name_batch(proto.graph, type(model).__name__)
    _strip(proto)
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _name_batch(graph: Any, name: str) -> None:
    for value in (*graph.input, *graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if dim.HasField("dim_value"):
            raise JobFailed(
                f"the model {name} fixes its batch size to {dim.dim_value}: write its forward() for any batch size"
            )
        dim.dim_param = "batch"


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
