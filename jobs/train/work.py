"""The stage `train`: from a prepared data set to a trained model on disk."""

from typing import Any

from jobs.context import Context
from jobs.data import Dataset
from jobs.models.build import build, save_model
from jobs.requests import TrainRequest
from jobs.spec.load import model_section
from jobs.storage import write_json
from jobs.train.loop import FitResult, fit


def train(context: Context, request: TrainRequest) -> dict[str, Any]:
    """Trains from scratch; rank 0 writes `model/` and `history.json`. Work for a WorkerGroup.

    Returns a summary: steps, epochs, curve, metric, productive_s, checkpoint_s; `stopped` if it ended early, and
    then nothing but checkpoints was written.
    """
    dataset = Dataset.open(request.dataset)
    info, recipe = dataset.info, request.recipe
    section = model_section(request.model)
    module = build(section, info.input_shape, info.outputs, seed=recipe.train.seed)
    result = fit(module, dataset, recipe, context, label="train", checkpoints=request.folder / "checkpoints")
    if result.module is not None and context.rank == 0:
        blueprint = {
            "model": request.model,
            "input_shape": list(info.input_shape),
            "outputs": info.outputs,
        }
        save_model(result.module, blueprint, request.folder / "model")
        write_json(request.folder / "history.json", result.history.document())
    return summary(result)


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
