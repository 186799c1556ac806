"""A search from Python: on its own, looked on, ended early, gone on with."""

import runpy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.records import Trial
from orchestrator import JobSpec, SearchResult, StopSearch, TrialEpoch, resume, search
from orchestrator.report import read_report

pytestmark = pytest.mark.usefixtures("local_ray")

SPEC: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}, "split": {"validation": 0.2, "test": 0.2}},
    "model": {"name": "mlp", "args": {"hidden": [16]}},
    "train": {"epochs": 3, "batch_size": 128, "optimizer": {"name": "adamw", "lr": 1e-2}},
    "search": {
        "trials": 3,
        "algorithm": "random",
        "scheduler": "none",
        "concurrency": 1,
        "space": {"train.optimizer.lr": {"loguniform": [1e-3, 3e-2]}},
    },
    "compress": {"quantize": {"schemes": ["fp16"]}, "budget": {"max_metric_drop": 0.5}},
}


def test_a_search_ends_early_and_another_goes_on_where_it_ended(tmp_path: Path):
    spec = JobSpec.parse(SPEC)
    told: list[Trial] = []
    epochs: list[TrialEpoch] = []

    def seen(epoch: TrialEpoch) -> None:
        epochs.append(epoch)
        if epoch.trial == 1:
            raise StopSearch("the second one tells it all")

    first = search(spec, runs=tmp_path, on_trial=told.append, on_epoch=seen)
    assert isinstance(first, SearchResult)
    assert [trial.number for trial in first.trials] == [0]  # the one that ran has ended, and is not among them
    assert tuple(told) == first.trials
    assert [epoch.trial for epoch in epochs] == [0, 0, 0, 1, 1]  # it ends at its next epoch
    assert epochs[-1].params.keys() == {"train.optimizer.lr"}
    assert first.ended == "the second one tells it all"
    assert first.run_dir is not None
    report = read_report(first.run_dir)
    assert "the search ended early: the second one tells it all" in report.warnings
    assert (report.state, report.artifacts) == ("succeeded", ())
    assert "A search and no more: 1 trial completed" in (first.run_dir / "report.html").read_text()
    assert pq.read_table(first.run_dir / "trials.parquet").equals(first.to_arrow())

    second = search(spec, runs=tmp_path)
    assert second.ended == ""
    assert [trial.number for trial in second.trials] == [0, 1, 2]
    assert second.trials[0] == first.trials[0]
    assert second.trials[1].params == epochs[-1].params
    assert second.best is not None
    assert second.best.values["metric"] == max(trial.values["metric"] for trial in second.trials)

    resumed = resume(first.run_dir, runs=tmp_path)
    assert resumed.artifacts == ()
    assert resumed.warnings == ()
    assert resumed.search is not None
    assert [Trial.from_json(document) for document in resumed.search["trials"]] == list(second.trials)
    assert list(resumed.search["importance"]) == ["train-0"]


def test_the_example_ends_with_a_selected_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    examples = Path(__file__).parents[2] / "examples"
    (tmp_path / "examples").symlink_to(examples)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(examples / "search.py"))
    out = capsys.readouterr().out
    assert "state='completed'" in out
    assert "value.metric" in out
    reports = [read_report(path.parent) for path in sorted((tmp_path / "runs").glob("*/report.json"))]
    assert sorted(bool(report.artifacts) for report in reports) == [False, True]
    made = next(report for report in reports if report.artifacts)
    assert out.splitlines()[-1] == made.selected
    assert {stage["name"]: stage["reused"] for stage in made.stages}["train"]
