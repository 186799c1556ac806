"""What the hash of each stage covers of the spec, and the version of what the stage writes. Pure."""

from typing import Any

from jobs.spec import JobSpec
from jobs.spec.model import HuggingFaceModel
from jobs.spec.search import Phase

SCHEMA_VERSIONS = {
    "train": 1,
    "segment": 1,
    "prune": 2,
    "low_rank": 1,
    "qat": 2,
    "share": 3,
    "export": 1,
    "quantize": 4,
    "pack": 1,
    "measure": 2,
    "test": 1,
    "search": 1,
}


def train_config(spec: JobSpec) -> dict[str, Any]:
    """What a training's result depends on, beside the data and the user's code. No layout, no retries, no paths."""
    resolved = spec.resolved()
    if isinstance(spec.model, HuggingFaceModel):
        del resolved["model"]["args"]["path"]  # what lies there counts as code
    train = {key: value for key, value in resolved["train"].items() if key != "checkpoint"}
    data = {key: resolved["data"][key] for key in ("normalize", "augment")}
    return {"model": resolved["model"], "train": train, "data": data, "metric": spec.metric}


def prune_config(spec: JobSpec) -> dict[str, Any]:
    return {"prune": spec.resolved()["compress"]["prune"]}


def low_rank_config(spec: JobSpec) -> dict[str, Any]:
    return {"low_rank": spec.resolved()["compress"]["low_rank"]}


def pack_config(spec: JobSpec) -> dict[str, Any]:
    return {"pack": spec.resolved()["compress"]["pack"]}


def search_config(spec: JobSpec, phase: Phase) -> dict[str, Any]:
    """What a search's result depends on: the space, the algorithm, and the base that trials differ from."""
    assert spec.search is not None
    apart = ("concurrency", "winners") if spec.search.scheduler == "pbt" else ("concurrency", "winners", "pbt")
    search = {k: v for k, v in spec.resolved()["search"].items() if k not in apart}
    config = {"phase": phase, "search": search, "train": train_config(spec)}
    if phase != "train":
        config["compress"] = spec.resolved()["compress"]
    return config
