"""Recovery: what a compressed model is trained by once more, and the samples that its importance is measured on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.compress.importance import Samples
from jobs.compress.masks import check_zeros, hold_zeros
from jobs.context import Context
from jobs.data import Dataset
from jobs.layout import ParallelLayout
from jobs.requests import Recipe
from jobs.spec.compress import Recover
from jobs.train.loop import fit
from jobs.train.losses import Loss

MOST_SAMPLES = 512
BATCH = 64
BATCH_VALUES = 1 << 22
"""Outputs that a batch holds at most: a language model has a vocabulary of them for each step."""


def recovery(recipe: Recipe, section: Recover) -> Recipe:
    """The training recipe with the recovery's own epochs and rate, its workers all data-parallel.

    A compressed model is small, and its widths need not divide as the dense one's did.
    """
    train = recipe.train
    rate = section.lr or train.optimizer.lr
    changes = {
        "epochs": section.epochs,
        "steps": None,
        "optimizer": train.optimizer.model_copy(update={"lr": rate}),
    }
    layout = recipe.layout
    parallel = ParallelLayout(data=layout.size, zero_stage=layout.zero_stage, offload=layout.offload)
    micro_batch = recipe.micro_batch if parallel == layout else None
    return replace(recipe, train=train.model_copy(update=changes), layout=parallel, micro_batch=micro_batch)


@dataclass
class Recovery:
    """The recoveries of one stage, one after another.

    Attributes:
        teacher: the dense parent.
        history: rows of all of them, as one training's.
        checkpoints: of a recovery that was broken off.
    """

    context: Context
    dataset: Dataset
    recipe: Recipe
    section: Recover
    teacher: nn.Module
    checkpoints: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"productive_s": 0.0, "checkpoint_s": 0.0})

    def run(
        self, module: nn.Module, number: int, label: str, masks: Mapping[str, torch.Tensor] | None = None
    ) -> nn.Module | None:
        """The module trained once more, whole on every rank; None if it was stopped early. Collective.

        Args:
            number: 1 for the first recovery of the stage.
            masks: which weights are zero, and stay so.
        """
        if not self.section.epochs:
            return module
        if masks:
            hold_zeros(module, masks)
        result = fit(
            module,
            self.dataset,
            recovery(self.recipe.of_size(self.context.size), self.section),
            self.context,
            label=label,
            checkpoints=self.checkpoints / f"recover-{number}",
            teacher=self.teacher,
            distill=self.section.distill,
        )
        if result.module is None:
            return None
        if masks:
            check_zeros(result.module, masks)
        offset = self.history[-1]["epoch"] if self.history else 0.0
        self.history += [{**row, "epoch": row["epoch"] + offset, "round": number} for row in result.history.epochs]
        for key in self.seconds:
            self.seconds[key] += getattr(result.history, key)
        return result.module

    @property
    def metric(self) -> float | None:
        """The last one on validation."""
        found = [row["metric"] for row in self.history if row["split"] == "validation"]
        return found[-1] if found else None


def training_samples(dataset: Dataset, recipe: Recipe, beat: Callable[[], None] = lambda: None) -> Samples:
    """What importance is measured on: the calibration samples, which belong to the training split, as they are.

    Args:
        beat: called for each batch, as a sign of life.
    """
    ids = dataset.calibration_ids[:MOST_SAMPLES]
    signature = dataset.info.signature
    values = signature.outputs * (signature.input_shape[0] if signature.per_step else 1)
    size = max(1, min(BATCH, BATCH_VALUES // values))
    x = torch.from_numpy(np.ascontiguousarray(dataset.encoded("train", ids, dataset.encoding(recipe.data.normalize))))
    targets = np.array(dataset.targets("train", ids))
    counts = dataset.class_counts if dataset.info.task == "classification" else None
    loss = Loss(recipe.train, counts, torch.device("cpu"))

    def summed(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        beat()
        return loss(outputs, y)

    weight = loss.weight(targets)
    batches = tuple(zip(x.split(size), torch.from_numpy(targets).split(size), strict=True))
    return Samples(batches, summed, max(weight, 1e-12))
