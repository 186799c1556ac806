"""What the exported files do on data that did not make them: the stages `measure` and `test`, and new samples.

Each worker predicts on a share of the samples. What is timed is timed by rank 0, when the others are done.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.context import Context
from jobs.data import Dataset
from jobs.exchange import Exchange
from jobs.measure.artifacts import measure as measure_files
from jobs.measure.artifacts import saturating
from jobs.measure.metrics import interval
from jobs.measure.outputs import next_tokens
from jobs.measure.session import ModelFile
from jobs.measure.size import compressed_bytes, macs
from jobs.requests import MeasureRequest, PredictRequest, ScoreRequest

Array = np.ndarray[Any, Any]
REPORT_EVERY_S = 0.5
_TIMED_SAMPLES = 64
_EXACT = " exact"
"""Behind the name of a file, for its outputs where nothing saturates."""


def measure(context: Context, request: MeasureRequest) -> dict[str, Any] | None:
    """Measures all candidates in one run, latencies in turns. Returns Measurements by name."""
    dataset = Dataset.open(request.dataset)
    files = {candidate.name: candidate.file for candidate in request.candidates}
    sessions = {name: (path, False) for name, path in files.items()}
    sessions |= {f"{name}{_EXACT}": (files[name], True) for name in saturating(files)}
    outputs = _outputs(context, sessions, dataset, request)
    if outputs is None:
        return None
    timed = np.arange(min(_TIMED_SAMPLES, dataset.num_samples(request.split)))
    x = dataset.encoded(request.split, timed, dataset.encoding(request.normalize))
    measured = measure_files(
        files,
        dense=request.dense,
        x=x,
        targets=dataset.targets(request.split),
        metric=request.metric,
        split=request.split,
        classes=dataset.info.classes,
        parity={c.name: c.parity for c in request.candidates},
        macs={c.name: macs(c.float_file, x[:1]) for c in request.candidates},
        parents={c.name: c.parent for c in request.candidates},
        num_threads=1,
        latency_s=request.latency_s,
        outputs={name: values for name, values in outputs.items() if not name.endswith(_EXACT)},
        exact={name.removesuffix(_EXACT): values for name, values in outputs.items() if name.endswith(_EXACT)},
    )
    for candidate in request.candidates:
        if candidate.archive is not None:
            sizes = {"bytes": candidate.archive.stat().st_size, "bytes_zstd": compressed_bytes(candidate.archive)}
            measured[candidate.name] = measured[candidate.name].model_copy(update=sizes)
    return {name: measurement.to_json() for name, measurement in measured.items()}


def score(context: Context, request: ScoreRequest) -> dict[str, Any] | None:
    """The metric alone, with its interval, for each file."""
    dataset = Dataset.open(request.dataset)
    sessions = {name: (path, False) for name, path in request.files.items()}
    outputs = _outputs(context, sessions, dataset, request)
    if outputs is None:
        return None
    targets = dataset.targets(request.split)
    return {
        name: interval(request.metric, values, targets, split=request.split).to_json()
        for name, values in outputs.items()
    }


def predict(context: Context, request: PredictRequest) -> None:
    """Predicts on a share of the samples, and leaves what is kept of the outputs in the exchange."""
    x = np.load(request.samples, mmap_mode="r")
    model = ModelFile(request.file)
    own = model.share(x[:1], len(x), context.rank, context.size)
    kept = {"outputs": kept_outputs(context, model, x[own.start : own.stop], request.last_code)} if own else {}
    Exchange(request.folder, context.size).give(context.rank, kept)


def kept_outputs(context: Context, model: ModelFile, x: Array, last_code: int | None) -> Array:
    """What is kept of the outputs for encoded samples: see PredictRequest. Reports how far it is."""
    kept: list[Array] = []
    progress = Progress(context, len(x))
    for outputs in model.predictions(x):
        done = progress.done
        progress.add(len(outputs))
        kept.append(kept_of(outputs, x[done : done + len(outputs)], last_code))
    return np.concatenate(kept)


def kept_of(outputs: Array, x: Array, last_code: int | None) -> Array:
    """Of a batch, what a prediction needs: all outputs, or of a language model's each text's next token."""
    return outputs if last_code is None else next_tokens(outputs, x, last_code)


class Progress:
    """Reports how many samples of a worker's share are predicted, at most twice a second."""

    def __init__(self, context: Context, total: int) -> None:
        self.context, self.total, self.done = context, total, 0
        self._next_at = 0.0

    def add(self, count: int) -> None:
        self.done += count
        self.context.beat()
        if (now := time.monotonic()) >= self._next_at:
            self._next_at = now + REPORT_EVERY_S
            self.context.report({"event": "predicted", "done": self.done, "total": self.total})


def _outputs(
    context: Context,
    sessions: dict[str, tuple[Path, bool]],
    dataset: Dataset,
    request: MeasureRequest | ScoreRequest,
) -> dict[str, Array] | None:
    """All condensed outputs of each file, at rank 0; at the others None, once their shares are written.

    Args:
        sessions: by name, a file, and whether its 8-bit sums must not saturate.
    """
    started = time.monotonic()
    targets, encoding = dataset.targets(request.split), dataset.encoding(request.normalize)
    first = dataset.encoded(request.split, np.arange(1), encoding)
    encoded: dict[range, Array] = {}
    kept: dict[str, Array] = {}
    for name, (path, exact) in sessions.items():
        model = ModelFile(path, exact=exact)
        own = model.share(first, len(targets), context.rank, context.size)
        if not own:
            continue
        if own not in encoded:
            encoded[own] = dataset.encoded(request.split, np.arange(own.start, own.stop), encoding)
        kept[name] = model.condensed(encoded[own], targets[own.start : own.stop])
    if context.size == 1:
        return kept
    encoded.clear()
    exchange = Exchange(request.folder, context.size)
    exchange.give(context.rank, kept)
    if context.rank:
        return None
    exchange.wait(context, time.monotonic() - started)
    return {name: exchange.arrays(name) for name in sessions}
