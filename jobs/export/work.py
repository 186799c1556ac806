"""The stage `export`: from a stored model to the file that is served and measured."""

from typing import Any

import numpy as np
import torch

from jobs.context import Context
from jobs.data import Dataset
from jobs.export.onnx import export_onnx
from jobs.measure.session import predict
from jobs.models.build import load_model
from jobs.requests import ExportRequest


def export(context: Context, request: ExportRequest) -> dict[str, Any] | None:
    """Writes `model.onnx` and compares it with the module it comes from. Done by rank 0 alone.

    Returns `params` and `parity`: the largest difference of the two outputs on calibration samples.
    """
    if context.rank:
        return None
    torch.set_num_threads(context.num_threads)
    dataset = Dataset.open(request.dataset)
    module = load_model(request.model).eval()
    path = request.folder / "model.onnx"
    export_onnx(module, dataset.info.input_shape, path, request.metadata)
    x = dataset.encoded("train", dataset.calibration_ids, dataset.encoding(request.normalize))
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    return {
        "params": sum(p.numel() for p in module.parameters()),
        "parity": float(np.abs(predict(path, x) - expected).max()),
    }
