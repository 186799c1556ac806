import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ArtifactError
from jobs.measure import latencies
from jobs.measure.latency import _interleaved, ratio

WriteMlp = Callable[[Path, list[np.ndarray]], Path]


def test_a_bigger_model_takes_longer(tmp_path: Path, write_mlp: WriteMlp) -> None:
    files = {
        name: write_mlp(tmp_path / f"{name}.onnx", [np.ones((64, width)), np.ones((width, 4))])
        for name, width in {"small": 16, "large": 16_384}.items()
    }
    started = time.perf_counter()
    found = latencies(files, np.ones((3, 64), dtype=np.float32), seconds_per_file=0.1)
    assert time.perf_counter() - started < 20.0
    for batch in ("batch_1", "batch_64"):
        small, large = found["small"][batch], found["large"][batch]
        assert 0.0 < small.p50 <= small.p90
        assert small.p50 < large.p50
        assert small.n >= 5
        assert large.n >= 5
    assert found["large"]["batch_1"].p50 < found["large"]["batch_64"].p50


def test_files_take_turns_in_rotating_order() -> None:
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        time.sleep(0.003)

    times = _interleaved({name: lambda name=name: run(name) for name in "abc"}, seconds_per_file=0.03)
    turns = "".join(calls[9:][::2])  # after the warm-up; a turn of this length is one uncounted run and one counted
    assert turns[:9] == "abcbcacab"
    assert all(3.0 <= t < 300.0 for rounds in times.values() for turn in rounds for t in turn)


def test_a_slow_file_is_timed_five_times_and_no_more() -> None:
    times = _interleaved({"slow": lambda: time.sleep(0.02)}, seconds_per_file=0.001)
    assert len(times["slow"]) == 5


def test_a_ratio_sees_through_what_slows_both_down() -> None:
    rng = np.random.default_rng(0)
    slow = 1.0 + 3.0 * rng.random(60)  # of the machine, round by round
    turns = [[6.0 * s * (1.0 + 0.01 * rng.standard_normal())] for s in slow]
    alike = [[6.0 * s * (1.0 + 0.01 * rng.standard_normal())] for s in slow]
    twice = [[12.0 * s] for s in slow]
    same = ratio(turns, alike)
    assert same.ci95[0] <= 1.0 <= same.ci95[1]
    assert same.ci95[1] - same.ci95[0] < 0.02
    assert ratio(twice, turns).value == pytest.approx(2.0, rel=0.02)
    assert ratio(twice, turns) == ratio(twice, turns)


def test_latencies_are_compared_with_the_named_and_p99_needs_a_thousand_runs(
    tmp_path: Path, write_mlp: WriteMlp
) -> None:
    file = write_mlp(tmp_path / "m.onnx", [np.ones((4, 4)), np.ones((4, 4))])
    x = np.ones((3, 4), dtype=np.float32)
    found = latencies({"a": file, "b": file}, x, batch_sizes=(1,), seconds_per_file=0.1, against={"b": ["a"]})
    assert found["a"]["batch_1"].against == {}
    assert 0.2 < found["b"]["batch_1"].against["a"].value < 5.0
    assert found["a"]["batch_1"].n >= 1000
    p90, p99 = found["a"]["batch_1"].p90, found["a"]["batch_1"].p99
    assert p99 is not None
    assert p99 >= p90
    few = latencies({"a": file}, x, batch_sizes=(1,), seconds_per_file=0.0001)["a"]["batch_1"]
    assert few.n < 1000
    assert few.p99 is None


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError):
        latencies({"model": tmp_path / "model.onnx"}, np.zeros((1, 4), dtype=np.float32))


def test_batches_of_tokens_are_timed_unless_their_logits_are_too_many(
    language_file: Path, texts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = texts[0][:5]
    assert set(latencies({"model": language_file}, x, seconds_per_file=0.01)["model"]) == {"batch_1", "batch_64"}
    monkeypatch.setattr("jobs.measure.latency._MAX_OUTPUT_BYTES", 63 * 12 * 64 * 4)
    assert set(latencies({"model": language_file}, x, seconds_per_file=0.01)["model"]) == {"batch_1"}
