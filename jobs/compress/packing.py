"""The stages `share` and `pack`: the work behind them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from jobs.compress.learnt import fold_norms
from jobs.compress.norms import restore_norms, settle_norms
from jobs.compress.pack import FILES, pack_files, unpack
from jobs.compress.sharing import round_shared, share_weights
from jobs.compress.sparse import GradualPruning, bake_weights, hide_smallest, mask_weights, weight_of, weighted_layers
from jobs.context import Context
from jobs.data import Dataset
from jobs.errors import SpecError
from jobs.layout import ParallelLayout
from jobs.models.build import load_model, save_model, shared_tensors
from jobs.requests import PACK_NAME, PackRequest, Recipe, ShareRequest
from jobs.spec.train import Cosine
from jobs.storage import atomic_path, read_json, write_json
from jobs.train.loop import FitResult, fit

_WARMUP = 0.05


def share(context: Context, request: ShareRequest) -> dict[str, Any]:
    """Trains a model with few weights, then with few values, on all the workers; rank 0 writes `model/`.

    What is zero and who shares what are functions of the weights, which every rank has alike. Raises SpecError for a
    model without weights of convolutions or linear layers, or with tied ones.
    """
    dataset, section = Dataset.open(request.dataset), request.pack
    dense = load_model(request.parent)
    _check(dense)
    blueprint = read_json(request.parent / "model.json")
    steps = request.folder / "checkpoints"
    steps.mkdir(parents=True, exist_ok=True)  # a training makes no folder above its own
    training = _Training(context, dataset, request, dense, steps)
    sparse = steps / "sparse"
    if (sparse / "model.json").exists():  # written after the tensors
        module = load_model(sparse)
    else:
        module = copy.deepcopy(dense)
        mask_weights(module)
        if section.recover.epochs:
            hide = GradualPruning(section.sparsity)
            pruned = training.run(module, "prune", section.recover.epochs, section.recover.lr or training.lr, hide)
            if pruned is None:
                return {"stopped": True}
            module = pruned
        else:
            hide_smallest(module, section.sparsity)
        bake_weights(module)
        if context.rank == 0:
            save_model(module, blueprint, sparse)
            write_json(steps / "history.json", training.summary)
    folded = fold_norms(module)
    centroids = share_weights(module, section.codebook_bits, section.conv_bits or section.codebook_bits)
    if section.finetune.epochs:
        tuned = training.run(module, "finetune", section.finetune.epochs, section.finetune.lr or 0.5 * training.lr)
        if tuned is None:
            return {"stopped": True}
        module = tuned
    restore_norms(module, folded)
    settle_norms(module)
    round_shared(module)
    bake_weights(module)
    if context.rank == 0:
        save_model(module, blueprint, request.folder / "model")
        write_json(request.folder / "history.json", {"epochs": training.summary["epochs"]})
    weights = [weight_of(layer) for _, layer in weighted_layers(module)]
    return {
        "stopped": False,
        "params": sum(p.numel() for p in module.parameters()),
        "nonzero_weights": sum(int(weight.count_nonzero()) for weight in weights),
        "centroids": centroids,
        "metric": training.metric,
        **{key: training.summary[key] for key in ("productive_s", "checkpoint_s")},
    }


def _check(module: nn.Module) -> None:
    if not list(weighted_layers(module)):
        raise SpecError.at(
            "compress.pack",
            f"the model {type(module).__name__} has no convolution and no linear layer whose weights could be shared",
            allowed="null",
        )
    if tied := shared_tensors(module):
        raise SpecError.at(
            "compress.pack",
            f"the model {type(module).__name__} has weights under several names ({next(iter(tied))}), which would come "
            "apart",
            allowed="null",
        )


class _Training:
    """The trainings of the stage, and what they have shown, together."""

    def __init__(
        self, context: Context, dataset: Dataset, request: ShareRequest, dense: nn.Module, checkpoints: Path
    ) -> None:
        self.context, self.dataset, self.request = context, dataset, request
        self.dense, self.checkpoints = dense, checkpoints
        self.lr = request.recipe.train.optimizer.lr
        kept = checkpoints / "history.json"  # of a training that was complete when the stage was broken off
        begun: dict[str, Any] = {"epochs": [], "productive_s": 0.0, "checkpoint_s": 0.0}
        self.summary = read_json(kept) if kept.exists() else begun

    def run(
        self, module: nn.Module, name: str, epochs: int, lr: float, before_step: GradualPruning | None = None
    ) -> nn.Module | None:
        """The module trained, whole on every rank; None if it was stopped early. Collective."""
        result = fit(
            module,
            self.dataset,
            _recipe(self.request.recipe.of_size(self.context.size), epochs, lr),
            self.context,
            label=f"pack: {name}",
            checkpoints=self.checkpoints / name,
            teacher=self.dense,
            distill=self.request.pack.recover.distill,
            before_step=before_step,
        )
        if result.module is not None:
            self._add(result)
        return result.module

    def _add(self, result: FitResult) -> None:
        rows = self.summary["epochs"]
        offset = rows[-1]["epoch"] if rows else 0.0
        rows += [{**row, "epoch": row["epoch"] + offset} for row in result.history.epochs]
        for key in ("productive_s", "checkpoint_s"):
            self.summary[key] += getattr(result.history, key)

    @property
    def metric(self) -> float | None:
        found = [row["metric"] for row in self.summary["epochs"] if row["split"] == "validation"]
        return found[-1] if found else None


def _recipe(recipe: Recipe, epochs: int, lr: float) -> Recipe:
    """The training recipe with epochs and rate of its own, its workers all data-parallel.

    Masks are made of whole weights, so these are not divided: ZeRO goes no further than gradients.
    """
    train, layout = recipe.train, recipe.layout
    changes = {
        "epochs": epochs,
        "steps": None,
        "optimizer": train.optimizer.model_copy(update={"lr": lr}),
        "schedule": Cosine(name="cosine", warmup=_WARMUP),
    }
    offload = layout.offload if layout.offload != "nvme" else "cpu"
    parallel = ParallelLayout(data=layout.size, zero_stage=min(layout.zero_stage, 2), offload=offload)
    micro_batch = recipe.micro_batch if parallel == layout else None
    return replace(recipe, train=train.model_copy(update=changes), layout=parallel, micro_batch=micro_batch)


def pack(context: Context, request: PackRequest) -> dict[str, Any] | None:
    """Writes `model.thpack`, and beside it the files that it restores: those are measured. Done by rank 0 alone.

    Returns `bytes` of the pack, `fp32_bytes` of the parameters, and `ratio`: how many times smaller it is.
    """
    if context.rank:
        return None
    contents = {name: (request.model / name).read_bytes() for name in FILES if name != "model.onnx"}
    contents["model.onnx"] = request.onnx.read_bytes()
    packed = pack_files(contents)
    path = request.folder / PACK_NAME
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    unpack(path, request.folder)
    fp32_bytes = 4 * sum(p.numel() for p in load_model(request.folder).parameters())
    return {"bytes": len(packed), "fp32_bytes": fp32_bytes, "ratio": fp32_bytes / len(packed)}
