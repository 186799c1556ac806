"""The stage `train`: from a prepared data set to a trained model on disk."""

import shutil
from pathlib import Path
from typing import Any

from jobs.context import Context
from jobs.data import Dataset
from jobs.layout import block_costs
from jobs.models.build import build, save_model
from jobs.models.inspection import summarize_module
from jobs.models.registry import summarize
from jobs.records import Signature
from jobs.requests import TrainRequest
from jobs.spec.load import model_section
from jobs.spec.model import FactoryModel, HuggingFaceModel, Model
from jobs.storage import write_json
from jobs.train.loop import FitResult, fit


def train(context: Context, request: TrainRequest) -> dict[str, Any]:
    """Trains from scratch; rank 0 writes `model/` and `history.json`. Work for a WorkerGroup.

    A segment of a training goes on from `request.start`; one that ends before the training does writes `checkpoint/`
    instead of the model.

    Returns a summary: steps, epochs, curve, metric, productive_s, checkpoint_s; `stopped` if it ended early, and
    then nothing but checkpoints was written.
    """
    dataset = Dataset.open(request.dataset)
    info, recipe = dataset.info, request.recipe.of_size(context.size)
    section = model_section(request.model)
    checkpoints = request.folder / "checkpoints"
    if request.start is not None and context.rank == 0:
        _take_over(request.start, checkpoints)  # the others look there once all have met
    costs = _block_costs(section, info.signature) if recipe.layout.pipeline > 1 else ()
    result = fit(
        build(section, info.signature, seed=recipe.train.seed),
        dataset,
        recipe,
        context,
        label="train",
        checkpoints=checkpoints,
        block_costs=costs,
        until_step=request.until_step,
    )
    if result.module is None and result.steps == request.until_step:
        if context.rank == 0:
            (written,) = checkpoints.glob(f"step-{result.steps:08d}")
            shutil.rmtree(request.folder / "checkpoint", ignore_errors=True)
            (request.folder / "checkpoint").mkdir()
            written.rename(request.folder / "checkpoint" / written.name)
        return summary(result) | {"stopped": False}
    if result.module is not None and context.rank == 0:
        blueprint = {
            "model": request.model,
            "signature": info.signature.to_json(),
        }
        # Until the stage is complete nobody reads these, and then all of it is flushed at once.
        save_model(result.module, blueprint, request.folder / "model", durable=False)
        write_json(request.folder / "history.json", result.history.document(), durable=False)
    return summary(result)


def _take_over(start: Path, checkpoints: Path) -> None:
    """Copies a checkpoint to where a training looks for its own, unless it has one already. The name comes last."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    (source,) = start.glob("step-*")
    if any(checkpoints.glob("step-*")):
        return
    temporary = checkpoints / f".{source.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    temporary.rename(checkpoints / source.name)


def _block_costs(section: Model, signature: Signature) -> tuple[int, ...]:
    """Multiply-accumulates of each block."""
    if isinstance(section, FactoryModel | HuggingFaceModel):
        question = {"model": section.model_dump(mode="json"), "signature": signature.to_json()}
        found = summarize_module(question)
    else:
        found = summarize(section, signature)
    return block_costs(found)


def summary(result: FitResult) -> dict[str, Any]:
    """What a training amounts to, as JSON."""
    validation = [row for row in result.history.epochs if row["split"] == "validation"]
    return {
        "stopped": result.module is None,
        "steps": result.steps,
        "epochs": validation[-1]["epoch"] if validation else 0.0,
        "curve": list(result.curve),
        "metric": result.curve[-1] if result.curve else None,
        "loss": validation[-1]["loss"] if validation else None,
        "productive_s": result.history.productive_s,
        "checkpoint_s": result.history.checkpoint_s,
    }
