"""The stages `prune` and `quantize`: the work behind them."""

from dataclasses import replace
from typing import Any

from jobs.compress.prune import prune_structured, step_ratios
from jobs.compress.quantize import quantize_onnx
from jobs.context import Context
from jobs.data import Dataset
from jobs.layout import ParallelLayout
from jobs.measure.session import largest_difference
from jobs.models.build import load_model, save_model
from jobs.requests import PruneRequest, QuantizeRequest, Recipe
from jobs.spec.compress import Prune
from jobs.storage import read_json, write_json
from jobs.train.loop import FitResult, fit


def prune(context: Context, request: PruneRequest) -> dict[str, Any]:
    """Removes channels in steps, each followed by recovery on all the workers; rank 0 writes `model/`.

    Every rank prunes its own copy: importance is a function of the weights alone, so all arrive at the same widths.
    """
    dataset = Dataset.open(request.dataset)
    info, section = dataset.info, request.prune
    dense = load_model(request.parent)
    blueprint = read_json(request.parent / "model.json")
    dense_params = sum(p.numel() for p in dense.parameters())
    ratios = step_ratios(section.ratio, section.steps)
    steps = request.folder / "checkpoints"
    module, first = dense, 0
    for done in range(len(ratios), 0, -1):
        if (steps / f"pruned-{done}" / "model.json").exists():  # written after the tensors
            module, first = load_model(steps / f"pruned-{done}"), done
            break
    history: list[dict[str, Any]] = []
    seconds = {"productive_s": 0.0, "checkpoint_s": 0.0}
    for index in range(first, len(ratios)):
        module = prune_structured(
            module,
            info.signature,
            ratio=ratios[index],
            round_to=section.round_to,
            global_pruning=section.global_pruning,
        )
        if section.recover.epochs:
            result = fit(
                module,
                dataset,
                recovery(request.recipe.of_size(context.size), section),
                context,
                label=f"recover {index + 1}/{len(ratios)}",
                checkpoints=steps / f"recover-{index + 1}",
                teacher=dense,
                distill=section.recover.distill,
            )
            if result.module is None:
                return {"stopped": True}
            module = result.module
            _collect(result, index, history, seconds)
        if context.rank == 0:
            save_model(module, blueprint, steps / f"pruned-{index + 1}")
    params = sum(p.numel() for p in module.parameters())
    if context.rank == 0:
        save_model(module, blueprint | {"pruned": True}, request.folder / "model")
        write_json(request.folder / "history.json", {"epochs": history})
    metrics = [row["metric"] for row in history if row["split"] == "validation"]
    return {
        "stopped": False,
        "params": params,
        "dense_params": dense_params,
        "metric": metrics[-1] if metrics else None,
        **seconds,
    }


def _collect(result: FitResult, index: int, history: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    offset = history[-1]["epoch"] if history else 0.0
    history += [{**row, "epoch": row["epoch"] + offset, "round": index + 1} for row in result.history.epochs]
    for key in seconds:
        seconds[key] += getattr(result.history, key)


def recovery(recipe: Recipe, section: Prune) -> Recipe:
    """The training recipe with the recovery's own epochs and rate, its workers all data-parallel.

    A pruned model is small, and its widths need not divide as the dense one's did.
    """
    train = recipe.train
    rate = section.recover.lr or train.optimizer.lr
    changes = {
        "epochs": section.recover.epochs,
        "steps": None,
        "optimizer": train.optimizer.model_copy(update={"lr": rate}),
    }
    layout = recipe.layout
    parallel = ParallelLayout(data=layout.size, zero_stage=layout.zero_stage, offload=layout.offload)
    micro_batch = recipe.micro_batch if parallel == layout else None
    return replace(recipe, train=train.model_copy(update=changes), layout=parallel, micro_batch=micro_batch)


def quantize(context: Context, request: QuantizeRequest) -> dict[str, Any] | None:
    """Writes `model.onnx` in the scheme's types; calibrated on training samples. Done by rank 0 alone.

    Returns what was done, and `parity`: the largest difference to the float file's outputs.
    """
    if context.rank:
        return None
    dataset = Dataset.open(request.dataset)
    samples = dataset.encoded("train", dataset.calibration_ids, dataset.encoding(request.normalize))
    target = request.folder / "model.onnx"
    done = quantize_onnx(request.source, target, request.scheme, samples)
    return {**done, "parity": largest_difference(target, request.source, samples)}
