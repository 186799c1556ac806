"""Whether an artifact's model can be divided over workers, decided before any of them is started."""

import tempfile
from pathlib import Path
from typing import Any

from jobs.compress.pack import FILES
from jobs.errors import Problem, SpecError
from jobs.layout import ParallelLayout, Setting, block_costs, refusal
from jobs.models.factory import inspect_factory
from jobs.models.registry import summarize
from jobs.records import ModelSummary
from jobs.requests import PACK_NAME
from jobs.spec.model import ForeignModel

NEEDED = ("model.safetensors", "model.json")


def block_costs_for(folder: Path, card: dict[str, Any], layout: ParallelLayout) -> tuple[int, ...]:
    """What each block of an artifact's model costs to compute, for a layout that divides the model.

    Args:
        folder: with the artifact's model files; of a pack with those that it restores.

    Raises:
        SpecError: the artifact has no file to divide, or the model does not take the layout; it speaks of the options
            --tensor and --pipeline.
        ArtifactError: the stored model is damaged.
    """
    check_files(folder, card, layout)
    summary = _summary(folder)
    # A stage without parameters has nothing to train; it may well compute.
    blocks = tuple(block.model_copy(update={"params": max(1, block.params)}) for block in summary.blocks)
    problem = refusal(layout, Setting(workers=layout.size).of(summary.model_copy(update={"blocks": blocks})))
    if problem is not None:
        raise SpecError([_as_option(problem)])
    return block_costs(summary)


def check_files(folder: Path, card: dict[str, Any], layout: ParallelLayout) -> None:
    """Refuses an artifact whose model lies in no file that can be divided. Raises SpecError, with what to do."""
    names = {file["path"] for file in card["files"]}
    if PACK_NAME in names:
        names.update(FILES)  # it restores them
    if all(name in names for name in NEEDED):
        return
    option, degree = ("--tensor", layout.tensor) if layout.tensor > 1 else ("--pipeline", layout.pipeline)
    instead = f"--workers {layout.size} alone: each worker runs the whole file on its share of the samples"
    if card.get("stage") == "quantize":
        why = f"{card['name']} is quantized: its quantized weights lie in model.onnx alone, which can't be divided"
        instead += f"; or the artifact {card['parent']!r}, which it was quantized from"
    else:
        why = "what is divided is model.safetensors, and the artifact has none"
        instead += "; or an artifact of a run whose export.formats has safetensors"
    raise SpecError.at(option, why, degree, instead)


def _summary(folder: Path) -> ModelSummary:
    from jobs.models.slices import StoredModel, tensor_width

    stored = StoredModel(folder)
    model, signature = stored.recipe.model, stored.recipe.signature
    if isinstance(model, ForeignModel):
        with tempfile.TemporaryDirectory() as cache:
            return inspect_factory(model, signature, working_dir=Path.cwd(), code="", cache=Path(cache))
    summary = summarize(model, signature)
    if stored.recipe.low_rank:
        summary = summary.model_copy(update={"no_tensor": "layers of low rank are not divided"})
    if stored.recipe.dropped:
        summary = summary.model_copy(update={"no_pipeline": "pruning has left out whole blocks"})
    if not stored.recipe.pruned or summary.no_tensor:
        return summary
    # Pruning has changed the widths.
    width = tensor_width(stored.skeleton())
    none = "" if width > 1 else "the widths that pruning has left have no common divisor"
    return summary.model_copy(update={"tensor_width": width, "no_tensor": none})


def _as_option(problem: Problem) -> Problem:
    return Problem(problem.path.replace("layout.", "--"), problem.message, problem.value, problem.allowed)
