"""What a search found, as tables and as a spec to go on with."""

import importlib
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

import orchestrator
from jobs.errors import JobFailed, SpecError
from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.searching.result import best_of, result_of, trials_table

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "mlp", "args": {"hidden": [16]}},
    "search": {
        "space": {"train.optimizer.lr": {"loguniform": [1e-3, 1e-1]}, "compress.prune.ratio": {"uniform": [0.2, 0.6]}}
    },
}
SPEC = JobSpec.parse(DOCUMENT)


def a_trial(number: int, state: Any = "completed", phase: Any = "train", **changes: Any) -> Trial:
    fields: dict[str, Any] = {
        "params": {"train.optimizer.lr": 0.01 * (number + 1)},
        "values": {"metric": 0.9 - 0.01 * number} if state == "completed" else {},
        "cause": "" if state == "completed" else "the loss is nan",
        "seconds": 2.5,
    }
    return Trial(number=number, phase=phase, state=state, **fields | changes)


def test_the_best_of_a_training_phase_has_the_best_metric():
    result = result_of(SPEC, [a_trial(1), a_trial(0), a_trial(2, "pruned"), a_trial(3, "failed")])
    assert result.best is not None
    assert result.best.number == 0
    best = result.best_spec
    assert (best.train.optimizer.lr, best.search) == (0.01, None)
    assert best.replace({"train.optimizer.lr": SPEC.train.optimizer.lr}) == SPEC.replace({"search": None})


def test_the_best_of_a_compression_phase_keeps_to_the_budget():
    small = a_trial(0, phase="compress", values={"metric": 0.5, "bytes": 10.0, "latency_ms": 1.0}, violation=0.3)
    large = a_trial(1, phase="compress", values={"metric": 0.9, "bytes": 90.0, "latency_ms": 1.0}, violation=-0.1)
    assert best_of([small, large], SPEC) == large


def test_without_a_completed_trial_there_is_no_best():
    result = result_of(SPEC, [a_trial(0, "failed")])
    assert result.best is None
    with pytest.raises(JobFailed, match="none of the 1 trials completed"):
        _ = result.best_spec
    assert result_of(SPEC, []).to_arrow().num_rows == 0


def test_tables_have_a_row_a_trial_and_a_column_a_key():
    trials = [a_trial(0), a_trial(1, "failed"), a_trial(2, params={"model.args.activation": "relu"})]
    table = result_of(SPEC, trials).to_arrow()
    assert table.column("number").to_pylist() == [0, 1, 2]
    assert table.column("train.optimizer.lr").to_pylist() == [0.01, 0.02, None]
    assert table.column("model.args.activation").to_pylist() == [None, None, "relu"]
    assert table.column("value.metric").to_pylist() == [0.9, None, pytest.approx(0.88)]
    assert table.schema.field("value.bytes").type == pa.float64()
    frame = result_of(SPEC, trials).to_pandas()
    assert list(frame.columns) == table.column_names
    assert frame.loc[frame["state"] == "failed", "cause"].tolist() == ["the loss is nan"]
    assert frame["value.metric"].idxmax() == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, "a"], ["1", "a"]), ([1, 2.5], [1.0, 2.5]), ([True, None], [True, None]), ([True, "no"], ["True", "no"])],
)
def test_a_choice_between_kinds_is_one_column(values: list[Any], expected: list[Any]):
    trials = [a_trial(n, params={} if value is None else {"key": value}) for n, value in enumerate(values)]
    assert trials_table(trials).column("key").to_pylist() == expected


def test_search_is_the_function_whatever_was_imported_before():
    importlib.import_module("orchestrator.searching.search")
    from orchestrator import search

    assert callable(search)
    assert sorted(orchestrator.__all__) == orchestrator.__all__
    assert all(getattr(orchestrator, name) is not None for name in orchestrator.__all__)


def test_pandas_and_ray_are_imported_by_those_who_ask_for_them_alone():
    modules = "orchestrator.searching.result, orchestrator.searching.watching"
    code = f"import sys, {modules}; print({{'pandas', 'ray'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_a_spec_without_a_search_is_refused(tmp_path: Any):
    with pytest.raises(SpecError, match="nothing to search"):
        orchestrator.search(SPEC.replace({"search": None}), runs=tmp_path)
    assert list(tmp_path.iterdir()) == []
