"""How long one run of a model file takes, on this machine."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jobs.measure.session import open_session, output_bytes
from jobs.records import Latency

_MAX_OUTPUT_BYTES = 256 << 20
_BURST_S = 0.002
_MAX_BURST = 50
_MIN_RUNS = 5
_WARM_UP_RUNS = 3


def latencies(
    paths: dict[str, Path],
    x: np.ndarray,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int = 1,
    seconds_per_file: float = 0.5,
) -> dict[str, dict[str, Latency]]:
    """Times every file, the files taking turns, so that a busy moment of the machine hits them all alike.

    A turn is a short burst of runs with warm caches: the first run of each is not counted. The order of the turns
    rotates from round to round.

    Args:
        paths: model files by name; all take samples of one shape and type.
        x: encoded samples (n, *input_shape), at least one; a batch holds the first of them, again and again if need be.
        batch_sizes: samples a run; left out where their outputs would take more than 256 MiB.
        num_threads: threads within an operator.
        seconds_per_file: time spent on a file over all batch sizes; exceeded only where 5 runs take longer.

    Returns:
        By name, then by `batch_<size>`: p50 and p90 in milliseconds, and the number of runs they come from.

    Raises:
        ArtifactError: a file is damaged.
    """
    sessions = {name: open_session(path, num_threads) for name, path in paths.items()}
    measured: dict[str, dict[str, Latency]] = {name: {} for name in paths}
    largest = max((output_bytes(session, x) for session in sessions.values()), default=0)
    for batch_size in batch_sizes:
        if batch_size * largest > _MAX_OUTPUT_BYTES:
            continue
        batch = np.ascontiguousarray(x[np.arange(batch_size) % len(x)])
        runs: dict[str, Callable[[], object]] = {
            name: partial(session.run, None, {session.get_inputs()[0].name: batch})
            for name, session in sessions.items()
        }
        for name, times_ms in _interleaved(runs, seconds_per_file / len(batch_sizes)).items():
            p50, p90 = np.percentile(times_ms, [50, 90])
            measured[name][f"batch_{batch_size}"] = Latency(p50=float(p50), p90=float(p90), n=len(times_ms))
    return measured


def _interleaved(runs: dict[str, Callable[[], object]], seconds_per_file: float) -> dict[str, list[float]]:
    """Milliseconds of each counted run, by name."""
    bursts = {name: _burst(run) for name, run in runs.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    spent_s = dict.fromkeys(runs, 0.0)
    order = list(runs)
    while order:
        for name in order:
            run, started_ns = runs[name], time.perf_counter_ns()
            run()
            for _ in range(bursts[name]):
                begin_ns = time.perf_counter_ns()
                run()
                times_ms[name].append((time.perf_counter_ns() - begin_ns) / 1e6)
            spent_s[name] += (time.perf_counter_ns() - started_ns) / 1e9
        order = order[1:] + order[:1]
        order = [n for n in order if spent_s[n] < seconds_per_file or len(times_ms[n]) < _MIN_RUNS]
    return times_ms


def _burst(run: Callable[[], object]) -> int:
    """Warms `run` up; how many runs fill a turn."""
    for _ in range(_WARM_UP_RUNS):
        begin_ns = time.perf_counter_ns()
        run()
        took_s = (time.perf_counter_ns() - begin_ns) / 1e9
    return min(_MAX_BURST, max(1, int(_BURST_S / max(took_s, 1e-9))))
