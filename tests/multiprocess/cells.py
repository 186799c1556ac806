"""What the parity and resume matrices are made of: models, layouts, optimizers; and how one cell is trained."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from jobs import data
from jobs.layout import ParallelLayout
from jobs.models.build import load_model
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec
from jobs.storage import read_json
from tests.multiprocess.ranks import Ranks

STEPS = 20
BATCH = 64
TOLERANCE = 1e-4

# A rounding error opens or closes a ReLU whose input lies next to zero, and turns into a jump of the loss; so the
# activations are smooth. Where batch normalization follows, a pixel that is the same in all samples of a group has no
# gradient, mathematically; as `unit`, such pixels are 0, and so are their gradients, exactly.
_SMOOTH = {"activation": "gelu"}
_NORM = {"batch_norm": True, "norm_group": 8, "dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "lenet": {
        "data.normalize": "unit",
        "model.args": {"conv_widths": [8], "linear_widths": [64, 32], "kernel": 3, **_SMOOTH, **_NORM},
    },
    "resnet": {"model.args": {"depth": 8, "width": 8, "norm_group": 8, **_SMOOTH}},
    "mlp": {"data.normalize": "unit", "model.args": {"hidden": [128, 64, 64, 32], **_SMOOTH, **_NORM}},
    "lstm": {
        "data.source": {"kind": "npz", "path": "sequences.npz"},
        "data.normalize": "none",
        "model.args": {"hidden": 128, "layers": 2, "dropout": 0.1, "pool": "mean"},
    },
    "transformer": {
        "data.source": {"kind": "text", "path": "text.txt", "length": 16, "tokenizer": {"kind": "byte"}},
        "model.args": {"layers": 3, "width": 32, "heads": 4, "dropout": 0.1},
    },
    "recommender": {
        "data.source": {"kind": "csv", "path": "ratings.csv", "categorical": ["user", "item"]},
        "data.target": "rating",
        "train.loss": "mse",
        "model.args": {"embedding": 16, "hidden": [128, 64], "dropout": 0.1, **_SMOOTH},
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 1e-3},
}
ONE = ParallelLayout()
DATA = [ParallelLayout(data=degree, zero_stage=stage) for degree in (2, 4) for stage in range(4)]
PIPELINE = [
    *[ParallelLayout(pipeline=2, zero_stage=stage) for stage in (0, 1)],
    *[ParallelLayout(data=2, pipeline=2, zero_stage=stage) for stage in (0, 1)],
    ParallelLayout(data=4, pipeline=2, zero_stage=1),
]
TENSOR = [
    *[ParallelLayout(tensor=2, zero_stage=stage) for stage in range(4)],
    *[ParallelLayout(data=2, tensor=2, zero_stage=stage) for stage in range(4)],
    ParallelLayout(data=4, tensor=2, zero_stage=2),
    *[ParallelLayout(tensor=2, pipeline=2, zero_stage=stage) for stage in (0, 1)],
    *[ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=stage) for stage in (0, 1)],
]
OFFLOADED = [
    ParallelLayout(data=2, zero_stage=2, offload="cpu"),
    ParallelLayout(data=2, zero_stage=3, offload="cpu"),
]
RESUMED = [
    ONE,
    *[ParallelLayout(data=2, zero_stage=stage) for stage in range(4)],
    ParallelLayout(tensor=2),
    ParallelLayout(pipeline=2),
    ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=1),
]


def layouts(model: str) -> list[ParallelLayout]:
    """All that the parity matrix tries a model in."""
    return [*DATA, *OFFLOADED, *PIPELINE, *([] if model == "lstm" else TENSOR)]


def name(layout: ParallelLayout) -> str:
    """For example "2×2×1 ZeRO 1": data × tensor × pipeline."""
    text = f"{layout.data}×{layout.tensor}×{layout.pipeline} ZeRO {layout.zero_stage}"
    return text if layout.offload == "none" else f"{text}, offload {layout.offload}"


def prepared(folder: Path) -> Path:
    """A folder with the small data that the models train on."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 640)
    lengths = rng.integers(4, 13, 640)
    waves = np.sin(np.arange(12)[None, :, None] * (labels[:, None, None] + 1) * np.array([0.3, 0.7, 1.1]))
    shifts = 6.0 * np.eye(4)[labels][:, None, :3]
    x = (waves + shifts + 0.1 * rng.standard_normal(waves.shape)).astype(np.float32)
    np.savez(folder / "sequences.npz", x=x, y=labels, lengths=lengths)
    words = ["the", "loss", "falls", "step", "by", "step", "and", "every", "layout", "agrees"]
    text = " ".join(words[index] for index in rng.integers(0, len(words), 3000))
    (folder / "text.txt").write_text(text)
    taste, appeal = rng.standard_normal((40, 3)), rng.standard_normal((30, 3))
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "rating"])
        for user, item in zip(rng.integers(0, 40, 900), rng.integers(0, 30, 900), strict=True):
            writer.writerow([f"u{user}", f"i{item}", round(2.5 + float(taste[user] @ appeal[item]), 2)])
    return folder


def spec_of(model: str, optimizer: str, folder: Path, **values: Any) -> JobSpec:
    document = {
        "name": "parity",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": model},
        "train": {"steps": STEPS, "batch_size": BATCH},
    }
    changes = MODELS[model] | {"train.optimizer": OPTIMIZERS[optimizer]} | values
    changes = dict(changes)
    source = changes.get("data.source")
    if source is not None:
        document["data"] = {"source": {**source, "path": str(folder / source["path"])}}
        del changes["data.source"]
    if "data.target" in changes:
        document["data"]["target"] = changes.pop("data.target")  # type: ignore[index]
    return JobSpec.parse(document).replace(changes)


def dataset_of(spec: JobSpec, folder: Path) -> Path:
    target = folder / "datasets" / data.fingerprint(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, target)
    return target


def request_of(spec: JobSpec, layout: ParallelLayout, dataset: Path, folder: Path) -> TrainRequest:
    # Two micro-batches a stage, so that a pipeline has something to interleave; of whole normalization groups.
    micro = max(8, BATCH // layout.data // (2 * layout.pipeline)) if layout.pipeline > 1 else None
    recipe = Recipe(spec.train, spec.data, spec.metric, layout=layout, micro_batch=micro)
    folder.mkdir(parents=True, exist_ok=True)
    return TrainRequest(model=spec.resolved()["model"], recipe=recipe, dataset=dataset, folder=folder)


class Cell:
    """A training in some layout, and what came of it."""

    def __init__(self, ranks: Ranks, spec: JobSpec, layout: ParallelLayout, data_folder: Path, folder: Path) -> None:
        request = request_of(spec, layout, dataset_of(spec, data_folder), folder)
        ranks.run("jobs.train.work:train", request, layout.size)
        self.losses = np.array(read_json(folder / "history.json")["losses"])
        self.metric = read_json(folder / "history.json")["epochs"][-1]["metric"]
        self.parameters = dict(load_model(folder / "model").named_parameters())

    def away_from(self, other: "Cell") -> tuple[float, float]:
        """The largest relative difference of a loss, and the largest difference of a parameter."""
        losses = np.abs(self.losses / other.losses - 1.0).max()
        parameters = max((value - other.parameters[name]).abs().max().item() for name, value in self.parameters.items())
        return float(losses), parameters
