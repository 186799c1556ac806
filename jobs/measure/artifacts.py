"""Everything that is measured of a set of model files, side by side."""

from pathlib import Path

import numpy as np

from jobs.errors import ArtifactError
from jobs.hardware import abilities, flags
from jobs.measure.latency import latencies
from jobs.measure.metrics import details, interval, paired_delta
from jobs.measure.session import open_session, predict_condensed
from jobs.measure.size import compressed_bytes, count_params, holds_integers
from jobs.records import Interval, Measurement


def measure(
    files: dict[str, Path],
    *,
    dense: str,
    x: np.ndarray,
    targets: np.ndarray,
    metric: str,
    split: str,
    classes: tuple[str, ...],
    parity: dict[str, float],
    macs: dict[str, int],
    parents: dict[str, str | None] | None = None,
    num_threads: int = 1,
    latency_s: float = 0.5,
    outputs: dict[str, np.ndarray] | None = None,
    exact: dict[str, np.ndarray] | None = None,
) -> dict[str, Measurement]:
    """Measures ONNX files through ONNX Runtime on this machine. All but the latency is deterministic.

    Args:
        files: by artifact name.
        dense: the name of the parent that the others are compared with, sample by sample.
        x: encoded samples (n, *input_shape), float32 or int64; the first ones are what latency is measured on.
        targets: (n,); of a language model (n, steps).
        metric: see `evaluate`.
        split: where the samples are from.
        classes: names in label order; empty for regression and language models.
        parity: by name, the largest difference to the outputs of the model that the file was made from.
        macs: by name, for one sample; see `macs`.
        parents: by name, the file that it was made from: latencies are compared with it, and with the dense one's.
        num_threads: threads within an operator.
        latency_s: time spent on timing a file.
        outputs: by name, the files' condensed outputs for all targets, where they are computed already; of `x` the
            first 64 samples then suffice.
        exact: by name, the condensed outputs of sessions in which no sum of 8-bit products saturates; for files whose
            name is in `saturating`. Computed with `outputs`, or given with them.

    Raises:
        ArtifactError: a file is damaged, or gives outputs that are not finite.
    """
    if outputs is None:
        exact = {
            name: predict_condensed(files[name], x, targets, num_threads=num_threads, exact=True)
            for name in saturating(files)
        }
        outputs = {name: predict_condensed(path, x, targets, num_threads=num_threads) for name, path in files.items()}
    for name, values in outputs.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise ArtifactError(f"{files[name]}: the outputs of {bad} of {len(values)} samples are not finite")
    against = {
        name: [other for other in dict.fromkeys(((parents or {}).get(name), dense)) if other in files and other != name]
        for name in files
    }
    latency_ms = latencies(files, x, num_threads=num_threads, seconds_per_file=latency_s, against=against)
    measurements = {}
    for name, path in files.items():
        params, nonzero_params = count_params(path)
        delta = paired_delta(metric, outputs[name], outputs[dense], targets) if name != dense else None
        measurements[name] = Measurement(
            metric=interval(metric, outputs[name], targets, split=split),
            metric_exact=_if_other((exact or {}).get(name), outputs[name], targets, metric, split),
            metric_delta=delta,
            details=details(outputs[name], targets, classes),
            bytes=path.stat().st_size,
            bytes_zstd=compressed_bytes(path),
            params=params,
            nonzero_params=nonzero_params,
            macs=macs[name],
            latency_ms=latency_ms[name],
            parity_max_abs_diff=parity[name],
        )
    return measurements


def saturating(files: dict[str, Path]) -> tuple[str, ...]:
    """The files whose 8-bit sums may saturate on this host, and that an exact session takes."""
    if abilities(flags(), cuda=False).exact_int8:
        return ()
    return tuple(name for name, path in files.items() if holds_integers(path) and _opens_exactly(path))


def _opens_exactly(path: Path) -> bool:
    try:
        open_session(path, exact=True)
    except ArtifactError:
        return False  # the runtime has no such kernel for some of the file's operators
    return True


def _if_other(
    exact: np.ndarray | None, outputs: np.ndarray, targets: np.ndarray, metric: str, split: str
) -> Interval | None:
    """The metric of the exact outputs; None where it is that of the others."""
    if exact is None or np.array_equal(exact, outputs):
        return None
    found = interval(metric, exact, targets, split=split)
    return None if found.value == interval(metric, outputs, targets, split=split).value else found
