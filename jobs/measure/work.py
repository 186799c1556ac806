"""The stages `measure` and `test`: what the exported files do on data that did not make them."""

from typing import Any

import numpy as np

from jobs.context import Context
from jobs.data import Dataset
from jobs.measure.artifacts import measure as measure_files
from jobs.measure.metrics import interval
from jobs.measure.session import predict_condensed
from jobs.measure.size import compressed_bytes, macs
from jobs.requests import MeasureRequest, ScoreRequest


def measure(context: Context, request: MeasureRequest) -> dict[str, Any] | None:
    """Measures all candidates in one run, latencies in turns. Done by rank 0 alone. Returns Measurements by name."""
    if context.rank:
        return None
    dataset = Dataset.open(request.dataset)
    x, targets = _split(dataset, request.split, request.normalize)
    measured = measure_files(
        {c.name: c.file for c in request.candidates},
        dense=request.dense,
        x=x,
        targets=targets,
        metric=request.metric,
        split=request.split,
        classes=dataset.info.classes,
        parity={c.name: c.parity for c in request.candidates},
        macs={c.name: macs(c.float_file, x[:1]) for c in request.candidates},
        num_threads=1,
        latency_s=request.latency_s,
    )
    for candidate in request.candidates:
        if candidate.archive is not None:
            sizes = {"bytes": candidate.archive.stat().st_size, "bytes_zstd": compressed_bytes(candidate.archive)}
            measured[candidate.name] = measured[candidate.name].model_copy(update=sizes)
    return {name: measurement.to_json() for name, measurement in measured.items()}


def score(context: Context, request: ScoreRequest) -> dict[str, Any] | None:
    """The metric alone, with its interval, for each file. Done by rank 0 alone."""
    if context.rank:
        return None
    dataset = Dataset.open(request.dataset)
    x, targets = _split(dataset, request.split, request.normalize)
    return {
        name: interval(request.metric, predict_condensed(path, x, targets), targets, split=request.split).to_json()
        for name, path in request.files.items()
    }


def _split(dataset: Dataset, split: str, normalize: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ids = np.arange(dataset.num_samples(split))
    return dataset.encoded(split, ids, dataset.encoding(normalize)), dataset.targets(split)
