"""Everything that is measured of a set of model files, side by side."""

from pathlib import Path

import numpy as np

from jobs.errors import ArtifactError
from jobs.measure.latency import latencies
from jobs.measure.metrics import details, interval, paired_delta
from jobs.measure.session import predict_condensed
from jobs.measure.size import compressed_bytes, count_params
from jobs.records import Measurement


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
    num_threads: int = 1,
    latency_s: float = 0.5,
    outputs: dict[str, np.ndarray] | None = None,
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
        num_threads: threads within an operator.
        latency_s: time spent on timing a file.
        outputs: by name, the files' condensed outputs for all targets, where they are computed already; of `x` the
            first 64 samples then suffice.

    Raises:
        ArtifactError: a file is damaged, or gives outputs that are not finite.
    """
    if outputs is None:
        outputs = {name: predict_condensed(path, x, targets, num_threads=num_threads) for name, path in files.items()}
    for name, values in outputs.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise ArtifactError(f"{files[name]}: the outputs of {bad} of {len(values)} samples are not finite")
    latency_ms = latencies(files, x, num_threads=num_threads, seconds_per_file=latency_s)
    measurements = {}
    for name, path in files.items():
        params, nonzero_params = count_params(path)
        delta = paired_delta(metric, outputs[name], outputs[dense], targets) if name != dense else None
        measurements[name] = Measurement(
            metric=interval(metric, outputs[name], targets, split=split),
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
