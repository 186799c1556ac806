"""The scheme int8_qat: fine-tuning with learnt steps of rounding, then a file that has these very steps."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.compress import graphs
from jobs.compress.calibration import Ranges, calibrate
from jobs.compress.integers import Overrides, static
from jobs.compress.learnt import Scales, bake, fold_norms, learn_steps, observe
from jobs.compress.masks import check_zeros, hold_zeros, zero_masks
from jobs.compress.quantize import write_quantized
from jobs.compress.stored import store_others, store_tables
from jobs.compress.variants import Variant
from jobs.context import Context
from jobs.data import Dataset
from jobs.errors import QuantizationFailed
from jobs.export.onnx import export_onnx
from jobs.layout import ParallelLayout
from jobs.measure.session import load_proto, predictions
from jobs.models.build import load_model
from jobs.records import Signature
from jobs.requests import QatRequest, Recipe
from jobs.spec.compress import Qat
from jobs.storage import write_json
from jobs.train.loop import fit

_BATCH = 64
_SAME_SCALE = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""What only moves or picks values: in the file its output has the scale of its input."""


def quantize_aware(context: Context, request: QatRequest) -> dict[str, Any] | None:
    """Fine-tunes on all workers, data-parallel, with rounding; rank 0 writes `model.onnx` and `history.json`.

    Returns what `quantize_onnx` does, and `parity`: the largest difference of the file's outputs to those of the
    model that was trained.

    Raises:
        QuantizationFailed: nothing can be rounded, or the file is not the model that was trained.
    """
    dataset = Dataset.open(request.dataset)
    samples = dataset.encoded("train", dataset.calibration_ids, dataset.encoding(request.recipe.data.normalize))
    parent, module = load_model(request.model), load_model(request.model).eval()
    rounded = learn_steps(module, observe(module, _batches(samples)))
    if rounded == 0:
        raise QuantizationFailed("int8_qat: the model has no linear layer, convolution or embedding to round")
    masks = zero_masks(parent)  # what was pruned stays zero
    hold_zeros(module, masks)
    result = fit(
        module,
        dataset,
        fine_tuning(request.recipe.of_size(context.size), request.qat),
        context,
        label="int8_qat",
        checkpoints=request.folder / "checkpoints",
        teacher=parent,
        distill=request.qat.distill,
    )
    if result.module is None:
        return {"stopped": True}
    check_zeros(result.module, masks)
    if context.rank:
        return None
    write_json(request.folder / "history.json", result.history.document())
    target = request.folder / "model.onnx"
    done = write_learnt(result.module, dataset.info.signature, target, samples, load_proto(request.source))
    rows = [row["metric"] for row in result.history.epochs if row["split"] == "validation"]
    return {
        **done,
        "stopped": False,
        "metric": rows[-1] if rows else None,
        "productive_s": result.history.productive_s,
        "checkpoint_s": result.history.checkpoint_s,
    }


def fine_tuning(recipe: Recipe, section: Qat) -> Recipe:
    """The training recipe with its own epochs and rate, all workers data-parallel, in fp32.

    bf16 has fewer bits than what is rounded to.
    """
    train = recipe.train
    rate = section.lr or train.optimizer.lr / 10.0
    changes = {
        "epochs": section.epochs,
        "steps": None,
        "precision": "fp32",
        "optimizer": train.optimizer.model_copy(update={"lr": rate}),
    }
    layout = recipe.layout
    parallel = ParallelLayout(data=layout.size, zero_stage=layout.zero_stage, offload=layout.offload)
    micro_batch = recipe.micro_batch if parallel == layout else None
    return replace(recipe, train=train.model_copy(update=changes), layout=parallel, micro_batch=micro_batch)


def write_learnt(
    module: nn.Module, signature: Signature, path: Path, samples: np.ndarray, original: Any
) -> dict[str, Any]:
    """Writes a model with learnt steps as an 8-bit file that has them; the module is used up.

    Args:
        module: as `learn_steps` made and a training left it.
        samples: for the ranges of what lies between the products, and to compare on.
        original: the float model as a file, whose metadata the new one takes.

    Returns what was done, as `quantize_onnx` does, and `parity`.
    """
    module = module.float().cpu().eval()
    with torch.no_grad():
        expected = [module(batch).numpy() for batch in _batches(samples)]
    fold_norms(module)
    scales = bake(module)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(module, signature, folder / "baked.onnx", {})
        prepared = graphs.prepare(folder / "baked.onnx", folder)
    ranges = calibrate(prepared, samples)["minmax"]
    model, overrides, tables = _with_steps(prepared, ranges, scales)
    if not overrides and not tables:
        raise QuantizationFailed("int8_qat: the exporter changed every weight, so that no learnt step fits the file")
    store_tables(model, tables)
    store_others(model)
    settings = {
        "weights": "int8",
        "activations": "uint8",
        "per_channel": True,
        "reduce_range": True,
        "calibration": "learnt",
        "calibration_samples": len(samples),
        "learnt": len([name for name in overrides if len(overrides[name]) > 1 or "axis" not in overrides[name][0]]),
        "learnt_tables": len(tables),
    }
    done = write_quantized(model, original, path, "int8_qat", settings, samples)
    found = predictions(path, samples, _BATCH)
    parity = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(found, expected, strict=True))
    return {**done, "parity": parity}


def _with_steps(prepared: Any, ranges: Ranges, scales: list[Scales]) -> tuple[Any, Overrides, dict[str, np.ndarray]]:
    """The model in QDQ format with the learnt steps: those of tensors, and those of tables of embeddings."""
    failure: Exception | None = None
    for alone in (True,) if graphs.has_attention(prepared.graph) else (False, True):
        overrides, tables = _overrides(prepared.graph, scales, alone)
        try:
            model = static(prepared, ranges, Variant(), products_alone=alone, overrides=overrides)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            failure = error
        else:
            return model, overrides, tables
    raise QuantizationFailed(f"int8_qat does not suit this model: {failure}") from failure


def _overrides(graph: Any, scales: list[Scales], alone: bool) -> tuple[Overrides, dict[str, np.ndarray]]:
    """The learnt steps by tensor of the file, found by the values of the weights; and those of tables.

    With `alone`, the inputs of products are rounded themselves; else what they come from.
    """
    from onnxruntime.quantization import QuantType

    tensors = graphs.constants(graph)
    makers = {node.output[0]: node for node in graph.node}
    pairs = graphs.twins(graph)
    overrides: Overrides = {}
    tables: dict[str, np.ndarray] = {}
    for node in graphs.products(graph):
        values = graphs.array_of(tensors[node.input[1]])
        found, axis = _same(values, [each for each in scales if each.input_scale is not None])
        if found is None:
            continue
        assert found.input_scale is not None
        steps = found.weight_scales.numpy()
        one = {"quant_type": QuantType.QInt8, "zero_point": np.array(0, np.int8)}
        entries: list[dict[str, Any]] = [{**one, "scale": np.array(step, np.float32)} for step in steps]
        if len(steps) > 1:
            entries[0]["axis"] = axis
        overrides[node.input[1]] = entries
        overrides.setdefault(
            node.input[0] if alone else _origin(node.input[0], makers),
            [
                {
                    "quant_type": QuantType.QUInt8,
                    "scale": np.array(found.input_scale, np.float32),
                    "zero_point": np.array(found.zero_point, np.uint8),
                }
            ],
        )
    for node in graphs.lookups(graph):
        values = graphs.array_of(tensors[node.input[0]])
        found, _ = _same(values, [each for each in scales if each.input_scale is None])
        if found is None:
            continue
        if node.input[0] in pairs:
            overrides[node.input[0]] = overrides.get(pairs[node.input[0]], [])[:1]
        elif len(found.weight_scales) == values.shape[1]:
            tables[node.input[0]] = found.weight_scales.numpy()
    return {name: entries for name, entries in overrides.items() if entries}, tables


def _same(values: np.ndarray, scales: list[Scales]) -> tuple[Scales | None, int]:
    """Whose weights a tensor of the file holds, and along which dimension its outputs lie."""
    for each in scales:
        weight = each.weight.numpy()
        if weight.shape == values.shape and np.array_equal(weight, values):
            return each, 0
        if weight.ndim == 2 and weight.T.shape == values.shape and np.array_equal(weight.T, values):
            return each, 1
    return None, 0


def _origin(name: str, makers: dict[str, Any]) -> str:
    while name in makers and makers[name].op_type in _SAME_SCALE:
        name = makers[name].input[0]
    return name


def _batches(samples: np.ndarray) -> Iterator[torch.Tensor]:
    for first in range(0, len(samples), _BATCH):
        yield torch.from_numpy(np.ascontiguousarray(samples[first : first + _BATCH]))
