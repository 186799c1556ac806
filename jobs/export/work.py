"""The stage `export`: from a stored model to the file that is served and measured."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.context import Context
from jobs.data import Dataset
from jobs.export.onnx import export_onnx
from jobs.measure.session import predictions
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
    export_onnx(module, dataset.info.signature, path, request.metadata)
    x = dataset.encoded("train", dataset.calibration_ids, dataset.encoding(request.normalize))
    return {"params": sum(p.numel() for p in module.parameters()), "parity": _parity(module, path, x)}


def _parity(module: nn.Module, path: Path, x: np.ndarray) -> float:
    # Batch by batch: the logits of a language model are a thousand times its input.
    largest, first = 0.0, 0
    with torch.no_grad():
        for outputs in predictions(path, x):
            expected = module(torch.from_numpy(x[first : first + len(outputs)])).numpy()
            largest, first = max(largest, float(np.abs(outputs - expected).max())), first + len(outputs)
    return largest
