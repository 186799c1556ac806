"""How long one run of a model file takes, on this machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jobs.measure.session import open_session, output_bytes
from jobs.records import Latency, Ratio

_MAX_OUTPUT_BYTES = 256 << 20
_BURST_S = 0.002
_MAX_BURST = 50
_MIN_RUNS = 5
_WARM_UP_RUNS = 3
_RUNS_FOR_P99 = 1000
_NUM_RESAMPLES = 500


def latencies(
    paths: dict[str, Path],
    x: np.ndarray,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    num_threads: int = 1,
    seconds_per_file: float = 0.5,
    against: Mapping[str, Sequence[str]] | None = None,
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
        against: by name, the others that its latency is compared with.

    Returns:
        By name, then by `batch_<size>`: p50, p90 and, of 1000 runs or more, p99 in milliseconds, the number of runs
        they come from, and the ratios to the others.

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
        rounds = _interleaved(runs, seconds_per_file / len(batch_sizes))
        for name, turns in rounds.items():
            others = {other: ratio(turns, rounds[other]) for other in (against or {}).get(name, ())}
            measured[name][f"batch_{batch_size}"] = _latency(turns, others)
    return measured


def _latency(turns: list[list[float]], against: dict[str, Ratio]) -> Latency:
    times_ms = [time_ms for turn in turns for time_ms in turn]
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
    enough = len(times_ms) >= _RUNS_FOR_P99
    return Latency(p50=p50, p90=p90, p99=p99 if enough else None, n=len(times_ms), against=against)


def ratio(turns: list[list[float]], others: list[list[float]]) -> Ratio:
    """How many times as long the runs of one file take as those of another that took turns with it.

    The median over the rounds of the ratio of the turns' medians, and its bootstrap interval (Efron & Tibshirani
    1993) over rounds: what slowed the machine down for a while hit both.
    """
    pairs = [(np.median(ours), np.median(theirs)) for ours, theirs in zip(turns, others, strict=False)]
    logs = np.log([max(ours, 1e-9) / max(theirs, 1e-9) for ours, theirs in pairs])
    drawn = np.random.default_rng(0).integers(len(logs), size=(_NUM_RESAMPLES, len(logs)))
    low, high = np.percentile(np.median(logs[drawn], axis=1), [2.5, 97.5])
    return Ratio(value=float(np.exp(np.median(logs))), ci95=(float(np.exp(low)), float(np.exp(high))))


def _interleaved(runs: dict[str, Callable[[], object]], seconds_per_file: float) -> dict[str, list[list[float]]]:
    """Milliseconds of each counted run, by name, turn by turn."""
    bursts = {name: _burst(run) for name, run in runs.items()}
    turns: dict[str, list[list[float]]] = {name: [] for name in runs}
    spent_s = dict.fromkeys(runs, 0.0)
    order = list(runs)
    while order:
        for name in order:
            run, started_ns = runs[name], time.perf_counter_ns()
            run()
            times_ms = []
            for _ in range(bursts[name]):
                begin_ns = time.perf_counter_ns()
                run()
                times_ms.append((time.perf_counter_ns() - begin_ns) / 1e6)
            turns[name].append(times_ms)
            spent_s[name] += (time.perf_counter_ns() - started_ns) / 1e9
        order = order[1:] + order[:1]
        order = [n for n in order if spent_s[n] < seconds_per_file or sum(map(len, turns[n])) < _MIN_RUNS]
    return turns


def _burst(run: Callable[[], object]) -> int:
    """Warms `run` up; how many runs fill a turn."""
    for _ in range(_WARM_UP_RUNS):
        begin_ns = time.perf_counter_ns()
        run()
        took_s = (time.perf_counter_ns() - begin_ns) / 1e9
    return min(_MAX_BURST, max(1, int(_BURST_S / max(took_s, 1e-9))))
