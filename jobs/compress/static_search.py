"""int8_static: a few variants are made and measured, and one is kept."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.compress import graphs
from jobs.compress.calibration import Method, Ranges, calibrate
from jobs.compress.integers import static
from jobs.compress.stored import store_others, store_tables
from jobs.compress.trim import trim
from jobs.compress.variants import Pick, Tried, Variant, choose, most_accurate, next_variant
from jobs.errors import ArtifactError
from jobs.measure.latency import latencies
from jobs.measure.metrics import evaluate
from jobs.measure.outputs import condense
from jobs.measure.probe import check_runs
from jobs.measure.session import open_session, output_bytes, predictions
from jobs.spec.job import HIGHER_IS_BETTER

_RANKED_LAYERS = 24
"""Layers whose sensitivity is measured, at most: the largest ones are left out, for they are what is to shrink."""
_LATENCY_S = 0.1
_OUTPUT_BYTES = 128 << 20
_FEWEST = 16
"""Held-out samples are as many as have outputs of so many bytes, but not fewer: a language model has a vocabulary of
them for each step."""
_PATIENCE = 5
"""How many times its seconds a search may take where nothing that it has found keeps to the budget: on a busy machine
the first variants alone take them, and are not the best."""
_NO_LAYERS: tuple[str, ...] = ()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Training samples that calibrate nothing: what variants are compared on.

    Attributes:
        x: encoded samples (n, *input_shape).
        targets: (n,), of a language model (n, steps).
        metric: see `jobs.measure.evaluate`.
    """

    x: np.ndarray
    targets: np.ndarray
    metric: str


@dataclass(frozen=True)
class Search:
    """How variants are compared, and for how long.

    Attributes:
        full_range: whether 8-bit weights cannot saturate where the file will run: see `jobs.hardware`.
        max_variants: how many are made at most.
        seconds: after which no further one is begun; five times that while all so far drop by more than is allowed.
        allowed_drop: of the metric, by the job's budget.
        pick: what the job wants of its artifact.
    """

    held_out: HeldOut
    full_range: bool = False
    max_variants: int = 8
    seconds: float = 60.0
    allowed_drop: float = 0.005
    pick: Pick = "smallest"


def int8_static(
    source: Path, folder: Path, calibration: np.ndarray, search: Search | None
) -> tuple[Any, dict[str, Any]]:
    """The quantized model and what was done: without `search` the first variant, else the best of a few.

    Raises what ONNX Runtime's tools raise for operators that they do not know.
    """
    prepared = graphs.prepare(source, folder)
    maker = _Maker(prepared, calibrate(prepared, calibration))
    variant, ranking, tried = Variant(), _NO_LAYERS, list[Tried]()
    if search is not None and search.max_variants > 1:
        variant, ranking, tried = _best(maker, source, folder, search)
    model = maker.make(variant, ranking)
    return model, {
        "weights": "int8",
        "activations": "int8" if variant.symmetric else "uint8",
        **variant.to_json(),
        "excluded": list(ranking[: variant.excluded]),
        "products_alone": maker.products_alone,
        "calibration_samples": len(calibration),
        "tried": [each.to_json() for each in tried],
    }


class _Maker:
    """Makes variants of one model, whose ranges are known."""

    def __init__(self, prepared: Any, ranges: dict[Method, Ranges]) -> None:
        self.prepared, self.ranges = prepared, ranges
        self.products_alone = graphs.has_attention(prepared.graph)
        self.layers = {node.name: node.input[1] for node in graphs.products(prepared.graph)}

    def make(self, variant: Variant, ranking: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Any:
        ranges, excluded = self.ranges[variant.calibration], ranking[: variant.excluded]
        options: dict[str, Any] = {"excluded": excluded, "only": only}
        try:
            model = static(self.prepared, ranges, variant, products_alone=self.products_alone, **options)
        except (AssertionError, KeyError, RuntimeError, ValueError):
            if self.products_alone:
                raise
            # The tools do not know how to quantize all that lies between the products, as group normalization.
            self.products_alone = True
            model = static(self.prepared, ranges, variant, products_alone=True, **options)
        if not only:
            store_tables(model)
            store_others(model)
        trim(model)
        return model


def _best(maker: _Maker, source: Path, folder: Path, search: Search) -> tuple[Variant, tuple[str, ...], list[Tried]]:
    scale = _Scale(source, search)
    began = time.monotonic()
    tried: list[Tried] = []
    ranking: tuple[str, ...] = ()
    while len(tried) < search.max_variants and (not tried or time.monotonic() - began < _seconds(search, tried)):
        variant = next_variant(
            tried,
            full_range=search.full_range,
            allowed_drop=search.allowed_drop,
            num_layers=min(len(maker.layers), _RANKED_LAYERS),
        )
        if variant is None:
            break
        if variant.excluded and not ranking:
            ranking = _most_sensitive(maker, most_accurate(tried).variant, scale, folder)
        tried.append(_tried(maker, variant, ranking, scale, folder))
    made = [each for each in tried if not each.failed]
    if not made:
        raise RuntimeError(tried[0].failed)
    return choose(made, pick=search.pick, tolerance=search.allowed_drop / 4).variant, ranking, tried


def _seconds(search: Search, tried: list[Tried]) -> float:
    kept = most_accurate(tried).drop <= search.allowed_drop
    return search.seconds if kept else _PATIENCE * search.seconds


def _tried(maker: _Maker, variant: Variant, ranking: tuple[str, ...], scale: "_Scale", folder: Path) -> Tried:
    path = folder / "variant.onnx"
    try:
        path.write_bytes(maker.make(variant, ranking).SerializeToString(deterministic=True))
        check_runs(path, scale.x[:1])
        drop, error = scale.weigh(path)
        latency = latencies({"it": path}, scale.x, batch_sizes=(1,), seconds_per_file=_LATENCY_S)["it"]["batch_1"]
    except (ArtifactError, AssertionError, KeyError, RuntimeError, ValueError) as failure:
        _log.info("int8_static %s: %s", variant, failure)
        return Tried(variant, failed=f"{type(failure).__name__}: {failure}"[:200])
    return Tried(variant, drop=drop, error=error, latency_ms=latency.p50, bytes=path.stat().st_size)


def _most_sensitive(maker: _Maker, variant: Variant, scale: "_Scale", folder: Path) -> tuple[str, ...]:
    """The layers by what each alone loses when it is quantized and nothing else is, the most first."""
    tensors = graphs.constants(maker.prepared.graph)
    by_size = sorted(maker.layers, key=lambda name: int(np.prod(tensors[maker.layers[name]].dims)))
    losses = {}
    path = folder / "alone.onnx"
    for name in by_size[:_RANKED_LAYERS]:
        path.write_bytes(maker.make(variant, only=(name,)).SerializeToString(deterministic=True))
        losses[name] = scale.weigh(path)[1]
    return tuple(sorted(losses, key=lambda name: -losses[name]))


class _Scale:
    """Weighs a file against the float one it came from, on held-out samples."""

    def __init__(self, source: Path, search: Search) -> None:
        held = search.held_out
        each = output_bytes(open_session(source), held.x)
        count = min(len(held.x), max(_FEWEST, _OUTPUT_BYTES // max(1, each)))
        self.metric, self.targets, self.x = held.metric, held.targets[:count], held.x[:count]
        self.outputs = [batch.copy() for batch in predictions(source, self.x)]
        self.value = self._value(self.outputs)
        size = sum(batch.size for batch in self.outputs)
        mean = sum(float(batch.sum(dtype=np.float64)) for batch in self.outputs) / size
        squares = sum(float(np.square(batch.astype(np.float64) - mean).sum()) for batch in self.outputs)
        self.variance = squares / size or 1.0

    def _value(self, outputs: list[np.ndarray]) -> float:
        kept, first = [], 0
        for batch in outputs:
            kept.append(condense(batch, self.targets[first : first + len(batch)]))
            first += len(batch)
        return evaluate(self.metric, np.concatenate(kept), self.targets)

    def weigh(self, path: Path) -> tuple[float, float]:
        """How much the metric drops, and the squared error of the outputs as a share of their variance."""
        outputs = list(predictions(path, self.x))
        squares = sum(
            float(((ours.astype(np.float64) - theirs) ** 2).sum())
            for ours, theirs in zip(outputs, self.outputs, strict=True)
        )
        count = sum(batch.size for batch in outputs)
        value = self._value(outputs)
        drop = (self.value - value) if self.metric in HIGHER_IS_BETTER else (value - self.value)
        if not np.isfinite(drop):
            raise RuntimeError("the outputs are not finite")
        return drop, squares / count / self.variance
