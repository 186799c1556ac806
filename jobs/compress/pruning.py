"""The methods of `compress.prune`: what one step of each does to a model, before it recovers."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jobs.compress.importance import Samples
from jobs.compress.masks import Masks, apply_masks, magnitude_masks, nm_masks, sparsity_at
from jobs.compress.prune import Cut, apply_cut, choose_cut, sensitive_layers
from jobs.compress.recover import training_samples
from jobs.compress.widths import step_ratios
from jobs.context import Context
from jobs.data import Dataset
from jobs.errors import SpecError
from jobs.requests import Recipe
from jobs.spec.compress import Prune
from jobs.spec.problems import nearest
from jobs.storage import read_json, write_json
from jobs.train.mesh import from_first


class Pruning:
    """One pruning, step by step. Every rank makes the same steps, each on a copy of its own.

    What was decided stands in `folder`, which all ranks reach: whoever goes on with a pruning that was broken off, on
    other machines perhaps, finds the recovery's checkpoints fit.

    Raises SpecError, when it begins, for names of layers that the model has not.
    """

    def __init__(
        self, context: Context, section: Prune, dense: nn.Module, dataset: Dataset, recipe: Recipe, folder: Path
    ) -> None:
        self.context, self.section, self.dense, self.folder = context, section, dense, folder
        self.signature = dataset.info.signature
        self.ratios = step_ratios(section.ratio, section.steps)
        named = section.protect if isinstance(section.protect, tuple) else ()
        check_names(dense, {"protect": named, "ignore": section.ignore})
        self.keep: tuple[str, ...] = (*section.ignore, *named)
        looks = section.importance != "magnitude" or section.protect == "auto" or "layers" in (section.what or ())
        self.samples: Samples | None = training_samples(dataset, recipe, context.beat) if looks else None
        if section.protect == "auto":
            found = self._decided("protected", lambda: list(self._sensitive()))
            self.keep += tuple(found)
            if context.rank == 0 and found:
                context.report({"event": "protected", "layers": found})

    def _decided(self, name: str, decide: Callable[[], Any]) -> Any:
        """What rank 0 decides, or has decided in an attempt before. Collective."""
        path = self.folder / f"{name}.json"
        document = from_first(self.context, read_json(path) if path.exists() else decide())
        if self.context.rank == 0:
            write_json(path, document)
        return document

    def _sensitive(self) -> tuple[str, ...]:
        """Found in the dense model, and so the same in every step."""
        assert self.samples is not None
        torch.set_num_threads(self.context.num_threads)
        section = self.section
        return sensitive_layers(
            self.dense,
            self.signature,
            ratio=section.ratio,
            importance=section.importance,
            what=section.what,
            keep=self.keep,
            samples=self.samples,
        )

    def step(self, module: nn.Module, index: int) -> tuple[nn.Module, Masks | None]:
        """The model after step `index`, and the masks that its recovery keeps to. Collective."""
        section = self.section
        if section.method == "structured":
            return self._smaller(module, index), None
        if section.method == "magnitude":
            sparsity = sparsity_at(index + 1, section.steps, section.ratio)
            masks = magnitude_masks(module, sparsity, global_pruning=section.global_pruning, ignore=section.ignore)
        else:
            masks = nm_masks(module, section.n, section.m, ignore=section.ignore)
        sparse = copy.deepcopy(module)
        apply_masks(sparse, masks)
        return sparse, masks

    def _smaller(self, module: nn.Module, index: int) -> nn.Module:
        section = self.section
        options: dict[str, Any] = {
            "round_to": section.round_to,
            "global_pruning": section.global_pruning,
            "importance": section.importance,
            "what": section.what,
        }
        torch.set_num_threads(self.context.num_threads)

        def decide() -> dict[str, Any]:
            ratio = self.ratios[index]
            cut = choose_cut(module, self.signature, ratio=ratio, keep=self.keep, samples=self.samples, **options)
            return cut.to_json()

        return apply_cut(module, self.signature, Cut.from_json(self._decided(f"cut-{index + 1}", decide)))


def check_names(model: nn.Module, named: dict[str, tuple[str, ...]]) -> None:
    """Raises SpecError for a name that no layer and no block has."""
    known = [name for name, layer in model.named_modules() if name and any(True for _ in layer.parameters())]
    for key, names in named.items():
        for name in names:
            if name not in known:
                shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
                raise SpecError.at(
                    f"compress.prune.{key}", "the model has no such layer", name, shown, nearest(name, known)
                )
