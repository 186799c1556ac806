"""The stages `prune`, `low_rank` and `quantize`: the work behind them."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from jobs.compress.low_rank import low_rank_copy
from jobs.compress.pruning import Pruning
from jobs.compress.quantize import quantize_onnx
from jobs.compress.recover import Recovery
from jobs.compress.static_search import HeldOut, Search
from jobs.context import Context
from jobs.data import Dataset
from jobs.errors import FactorizationFailed
from jobs.measure.session import largest_difference
from jobs.models.build import load_model, save_model
from jobs.models.structure import blocks_left_out
from jobs.requests import LowRankRequest, PruneRequest, QuantizeRequest, VariantSearch
from jobs.storage import read_json, write_json
from jobs.train.mesh import from_first


def prune(context: Context, request: PruneRequest) -> dict[str, Any]:
    """Prunes in steps, each followed by recovery on all the workers; rank 0 writes `model/`.

    What is to go is decided by importance, which every rank measures alike; the first one's decision holds.
    """
    dataset = Dataset.open(request.dataset)
    section = request.prune
    dense, blueprint = load_model(request.parent), read_json(request.parent / "model.json")
    before = list(blueprint.get("dropped", []))
    steps = request.folder / "checkpoints"
    steps.mkdir(parents=True, exist_ok=True)  # a training makes no folder above its own
    method = Pruning(context, section, dense, dataset, request.recipe, steps)
    recovering = Recovery(context, dataset, request.recipe, section.recover, dense, steps)
    module, first = dense, 0
    for done in range(section.steps, 0, -1):
        if (steps / f"pruned-{done}" / "model.json").exists():  # written after the tensors
            module, first = load_model(steps / f"pruned-{done}"), done
            break
    for index in range(first, section.steps):
        module, masks = method.step(module, index)
        label = f"recover {index + 1}/{section.steps}"
        recovered = recovering.run(module, index + 1, label, masks)
        if recovered is None:
            return {"stopped": True}
        module = recovered
        structure = blueprint | {"dropped": [*before, *blocks_left_out(dense, module)]}
        if context.rank == 0:
            save_model(module, structure, steps / f"pruned-{index + 1}")
    structure = blueprint | {"dropped": [*before, *blocks_left_out(dense, module)], "pruned": True}
    more = {"method": section.method, "left_whole": list(method.keep)}
    return {**_finish(context, request.folder, module, dense, structure, recovering), **more}


def low_rank(context: Context, request: LowRankRequest) -> dict[str, Any]:
    """Replaces large layers by two thin ones each, and recovers on all the workers; rank 0 writes `model/`.

    Raises FactorizationFailed, on every rank, where no layer gets cheaper.
    """
    dataset = Dataset.open(request.dataset)
    section = request.low_rank
    parent, blueprint = load_model(request.parent), read_json(request.parent / "model.json")
    steps = request.folder / "checkpoints"
    steps.mkdir(parents=True, exist_ok=True)  # a training makes no folder above its own
    # Singular vectors may differ from machine to machine, so those of one are everybody's.
    found: dict[str, Any] = {}
    if (steps / "factorized" / "model.json").exists():  # by an attempt before; written after the tensors
        found = {"ranks": read_json(steps / "factorized" / "model.json")["low_rank"]}
    elif context.rank == 0:
        options = section.model_dump(include={"energy", "rank_ratio", "min_size", "convolutions", "ignore"})
        try:
            copied, ranks = low_rank_copy(parent, **options)
        except FactorizationFailed as error:
            found = {"refused": str(error)}
        else:
            found = {"ranks": ranks}
            save_model(copied, blueprint | {"low_rank": ranks}, steps / "factorized")
    found = from_first(context, found)
    if "refused" in found:
        raise FactorizationFailed(found["refused"])
    structure = blueprint | {"low_rank": found["ranks"]}
    recovering = Recovery(context, dataset, request.recipe, section.recover, parent, steps)
    module = recovering.run(load_model(steps / "factorized"), 1, "recover low rank")
    if module is None:
        return {"stopped": True}
    return {**_finish(context, request.folder, module, parent, structure, recovering), "ranks": found["ranks"]}


def _finish(
    context: Context,
    folder: Path,
    module: nn.Module,
    parent: nn.Module,
    structure: dict[str, Any],
    recovering: Recovery,
) -> dict[str, Any]:
    if context.rank == 0:
        save_model(module, structure, folder / "model")
        write_json(folder / "history.json", {"epochs": recovering.history})
    return {
        "stopped": False,
        "params": sum(p.numel() for p in module.parameters()),
        "nonzero_params": sum(int(p.count_nonzero()) for p in module.parameters()),
        "dense_params": sum(p.numel() for p in parent.parameters()),
        "metric": recovering.metric,
        **recovering.seconds,
    }


def quantize(context: Context, request: QuantizeRequest) -> dict[str, Any] | None:
    """Writes `model.onnx` in the scheme's types; calibrated on training samples. Done by rank 0 alone.

    Returns what was done, and `parity`: the largest difference to the float file's outputs.
    """
    if context.rank:
        return None
    dataset = Dataset.open(request.dataset)
    samples = dataset.encoded("train", dataset.calibration_ids, dataset.encoding(request.normalize))
    target = request.folder / "model.onnx"
    search = None if request.search is None else _search(dataset, request.normalize, request.search)
    done = quantize_onnx(request.source, target, request.scheme, samples, search=search)
    return {**done, "parity": largest_difference(target, request.source, samples)}


def _search(dataset: Dataset, normalize: str, request: VariantSearch) -> Search | None:
    """The search for a variant, on training samples apart from the calibration's; None where there are none."""
    others = np.setdiff1d(np.arange(dataset.num_samples("train")), dataset.calibration_ids)
    if len(others) == 0:
        return None
    drawn = np.random.default_rng(request.seed).permutation(others)[: request.limits.held_out]
    held_out = HeldOut(
        dataset.encoded("train", drawn, dataset.encoding(normalize)), dataset.targets("train", drawn), request.metric
    )
    return Search(
        held_out,
        full_range=request.full_range,
        max_variants=request.limits.max_variants,
        seconds=request.limits.seconds,
        allowed_drop=request.allowed_drop,
        pick=request.pick,
    )
