"""int8_static: which variants are tried, on what, and which one is kept."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from jobs.compress import quantize_onnx
from jobs.compress.calibration import METHODS, calibrate
from jobs.compress.graphs import prepare
from jobs.compress.static_search import HeldOut, Search
from jobs.compress.variants import Tried, Variant, choose, next_variant
from jobs.measure import predict
from tests.jobs.compress.conftest import Small

Families = Callable[[str], Small]


def tried(drop: float = 0.0, error: float = 0.1, ms: float = 1.0, size: int = 1000, **changes: Any) -> Tried:
    return Tried(Variant(**changes), drop=drop, error=error, latency_ms=ms, bytes=size)


def all_tried(*, full_range: bool, drop: float, num_layers: int = 8) -> list[Variant]:
    done: list[Tried] = []
    while variant := next_variant(done, full_range=full_range, allowed_drop=0.01, num_layers=num_layers):
        done.append(Tried(variant, drop=drop, error=1.0 / (1 + len(done)), latency_ms=1.0, bytes=1))
        assert len(done) < 20
    return [each.variant for each in done]


def test_each_change_is_tried_once_and_saturation_never_without_need() -> None:
    found = all_tried(full_range=False, drop=0.0)
    assert found[0] == Variant()
    assert len(set(found)) == len(found) == 5
    assert all(variant.reduce_range for variant in found)
    assert {variant.calibration for variant in found} == set(METHODS)
    assert any(not variant.reduce_range for variant in all_tried(full_range=True, drop=0.0))


def test_layers_are_excluded_only_where_too_much_is_lost() -> None:
    assert {variant.excluded for variant in all_tried(full_range=False, drop=0.0)} == {0}
    assert {variant.excluded for variant in all_tried(full_range=False, drop=0.02)} == {0, 1, 2, 4}
    assert {v.excluded for v in all_tried(full_range=False, drop=0.02, num_layers=2)} == {0, 1}


@pytest.mark.parametrize(
    ("pick", "expected"), [("fastest", "percentile"), ("smallest", "entropy"), ("most_accurate", "minmax")]
)
def test_the_choice_follows_the_pick_among_those_that_lose_as_little(pick: Any, expected: str) -> None:
    candidates = [
        tried(drop=0.000, error=0.01, ms=2.0, size=2000),
        tried(drop=0.001, error=0.05, ms=1.0, size=2000, calibration="percentile"),
        tried(drop=0.001, error=0.05, ms=2.0, size=1000, calibration="entropy"),
        tried(drop=0.300, error=0.90, ms=0.1, size=10, symmetric=True),
        Tried(Variant(per_channel=False), failed="no kernel"),
    ]
    assert choose(candidates, pick=pick, tolerance=0.002).variant.calibration == expected


def test_latencies_within_noise_do_not_decide() -> None:
    candidates = [tried(error=0.01, ms=1.03), tried(error=0.05, ms=1.0, calibration="entropy")]
    assert choose(candidates, pick="fastest", tolerance=0.002).variant.calibration == "minmax"


def test_nothing_made_is_an_error() -> None:
    with pytest.raises(ValueError, match="no variant"):
        choose([Tried(Variant(), failed="x")], pick="smallest", tolerance=0.0)


def test_ranges_hold_zero_and_outliers_widen_minmax_alone(tmp_path: Path, families: Families) -> None:
    small = families("lenet")
    x = np.concatenate([small.x] * 8)
    x[0, 0, 0, 0] = 1000.0
    found = calibrate(prepare(small.file, tmp_path), x)
    assert set(found) == set(METHODS)
    assert found["minmax"]["input"][1] == 1000.0
    for method in ("percentile", "entropy"):
        low, high = found[method]["input"]
        assert low <= 0.0 <= high
        assert high < 500.0
    for ranges in found.values():
        assert all(low <= 0.0 <= high and np.isfinite([low, high]).all() for low, high in ranges.values())


def search_of(small: Small, metric: str = "accuracy", **limits: Any) -> Search:
    targets = predict(small.file, small.x).argmax(axis=1)
    return Search(HeldOut(small.x, targets, metric), **limits)


def test_the_search_measures_and_records_what_it_tried(tmp_path: Path, families: Families) -> None:
    small = families("mlp")
    done = quantize_onnx(
        small.file, tmp_path / "q.onnx", "int8_static", small.x[:32], search=search_of(small, max_variants=4)
    )
    settings = done["settings"]
    table = settings["tried"]
    assert len(table) == 4
    assert all(row["latency_ms"] > 0.0 and row["bytes"] > 0 and np.isfinite(row["error"]) for row in table)
    chosen = {name: settings[name] for name in ("calibration", "symmetric", "per_channel", "reduce_range")}
    assert any(chosen.items() <= row.items() for row in table)
    assert len(settings["calibration_sha256"]) == 64
    one = quantize_onnx(
        small.file, tmp_path / "o.onnx", "int8_static", small.x[:32], search=search_of(small, max_variants=1)
    )
    assert one["settings"]["tried"] == []
    assert one["settings"]["reduce_range"]


def test_a_search_without_time_left_goes_on_while_nothing_keeps_to_the_budget(
    tmp_path: Path, families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, clock, numbers = families("mlp"), count(0.0, 10.0), []
    monkeypatch.setattr("jobs.compress.static_search.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("jobs.compress.static_search._tried", lambda maker, variant, *_: Tried(variant, 0.1, 0.1, 1.0))
    for allowed in (1.0, 0.01):  # all keep to the first, none to the second
        search = search_of(small, seconds=15.0, allowed_drop=allowed, max_variants=4)
        done = quantize_onnx(small.file, tmp_path / "q.onnx", "int8_static", small.x[:32], search=search)
        numbers.append(len(done["settings"]["tried"]))
    assert numbers == [2, 4]


def test_what_is_lost_most_by_stays_in_float(tmp_path: Path) -> None:
    """A planted layer whose weights hold an outlier a channel: nothing is left of the others in 8 bits."""
    rng = np.random.default_rng(0)
    good = rng.standard_normal((16, 16)).astype(np.float32) / 4.0
    bad = rng.standard_normal((16, 4)).astype(np.float32) / 4.0
    bad[0] = 4000.0  # of an input that is always zero
    nodes = [
        onnx.helper.make_node("MatMul", ["input", "good"], ["h"], "fine"),
        onnx.helper.make_node("Mul", ["h", "mask"], ["m"], "mask_it"),
        onnx.helper.make_node("MatMul", ["m", "bad"], ["output"], "fragile"),
    ]
    mask = np.ones(16, np.float32)
    mask[0] = 0.0
    graph = onnx.helper.make_graph(
        nodes,
        "planted",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 16])],
        [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(v, n) for n, v in (("good", good), ("bad", bad), ("mask", mask))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    x = rng.standard_normal((400, 16)).astype(np.float32)
    targets = predict(tmp_path / "m.onnx", x).argmax(axis=1)
    search = Search(HeldOut(x[100:], targets[100:], "accuracy"), max_variants=12, pick="most_accurate")
    done = quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8_static", x[:100], search=search)
    assert done["settings"]["excluded"] == ["fragile"]
    assert done["float_nodes"] == 1
    assert (predict(tmp_path / "q.onnx", x).argmax(axis=1) == targets).mean() > 0.95
