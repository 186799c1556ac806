"""Predictions of trained models, spread over workers in every way: the same as those of one process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.gang import Gang
from cluster.workers import run_work
from jobs.compress.pack import pack_files
from jobs.context import WorkRef
from jobs.errors import ArtifactError
from jobs.export.card import file_records, read_card, write_card
from jobs.records import RunReport
from orchestrator import JobSpec, artifacts, run
from orchestrator.prediction import Spread, predict_with

WORDS = ["the", "loss", "falls", "step", "by", "step", "and", "every", "layout", "agrees"]
SPREADS = {"data": Spread(workers=2), "tensor": Spread(tensor=2), "pipeline": Spread(pipeline=2)}


@dataclass(frozen=True)
class Trained:
    report: RunReport
    artifact: Path
    data: Path


def trained(folder: Path, **document: Any) -> Trained:
    spec = JobSpec.parse({"name": "small", "resources": {"workers": 2}, "layout": {"data": 2}, **document})
    report = run(spec, runs=folder / "runs")
    return Trained(report, folder / "runs" / report.run_id / "artifacts" / "dense", folder)


@pytest.fixture(scope="module")
def language(local_ray: object, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A language model after a short training, and lines to go on from: 600, three batches."""
    folder, rng = tmp_path_factory.mktemp("language"), np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(WORDS[index] for index in rng.integers(0, len(WORDS), 4000)))
    lines = [" ".join(WORDS[index] for index in rng.integers(0, len(WORDS), 2)) for _ in range(600)]
    (folder / "new.txt").write_text("\n".join(lines) + "\n")
    source = {"kind": "text", "path": str(folder / "text.txt"), "length": 16, "tokenizer": {"kind": "byte"}}
    return trained(
        folder,
        data={"source": source},
        model={"name": "transformer", "args": {"layers": 2, "width": 32, "heads": 4}},
        train={"epochs": 2, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 1e-2}},
    )


@pytest.fixture(scope="module")
def table(local_ray: object, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A classifier of table rows, and its int8 child, measured by two workers."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    x = rng.standard_normal((3000, 6)).round(3)
    label = np.where(x[:, 0] + x[:, 1] * x[:, 2] > 0, "yes", "no")
    header = ",".join([*(f"x{i}" for i in range(6)), "label"])
    rows = [",".join([*map(str, row), name]) for row, name in zip(x, label, strict=True)]
    (folder / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "new.csv").write_text("\n".join([header, *rows[:700]]) + "\n")
    source = {"kind": "csv", "path": str(folder / "rows.csv")}
    return trained(
        folder,
        data={"source": source, "target": "label", "split": {"validation": 0.4}},
        model={"name": "mlp", "args": {"hidden": [32, 16]}},
        train={"epochs": 2, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 1e-2}},
        compress={"quantize": {"schemes": ["int8_dynamic"]}},
    )


@pytest.fixture(scope="module")
def gang(local_ray: object) -> Iterator[Gang]:
    with Gang(2, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
        yield gang


@pytest.mark.parametrize("name", SPREADS)
def test_a_language_model_says_the_same_however_it_is_spread(language: Trained, gang: Gang, name: str) -> None:
    here = predict_with(language.artifact, language.data / "new.txt")
    found = predict_with(language.artifact, language.data / "new.txt", SPREADS[name], group=gang)
    assert len(found) == len(here) == 600
    np.testing.assert_allclose(found.outputs[:, 1], here.outputs[:, 1], rtol=0.0, atol=1e-5)
    assert [row["prediction"] for row in found] == [row["prediction"] for row in here]
    assert len({row["prediction"] for row in here}) > 1
    if name == "data":
        assert (found.outputs == here.outputs).all()


@pytest.mark.parametrize("name", SPREADS)
def test_a_table_model_says_the_same_however_it_is_spread(table: Trained, gang: Gang, name: str) -> None:
    here = predict_with(table.artifact, table.data / "new.csv")
    found = predict_with(table.artifact, table.data / "new.csv", SPREADS[name], group=gang)
    np.testing.assert_allclose(found.outputs, here.outputs, rtol=0.0, atol=1e-5)
    assert [row["prediction"] for row in found] == [row["prediction"] for row in here]
    if name == "data":
        assert (found.outputs == here.outputs).all()


def test_fewer_samples_than_workers(table: Trained, gang: Gang, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("\n".join((table.data / "new.csv").read_text().splitlines()[:2]) + "\n")
    here = predict_with(table.artifact, tmp_path / "one.csv")
    assert list(predict_with(table.artifact, tmp_path / "one.csv", Spread(workers=2), group=gang)) == list(here)


def test_a_quantized_model_is_spread_to_the_bit(table: Trained, gang: Gang) -> None:
    folder = table.artifact.with_name("dense-int8_dynamic")
    here = predict_with(folder, table.data / "new.csv")
    assert (predict_with(folder, table.data / "new.csv", Spread(workers=2), group=gang).outputs == here.outputs).all()


@pytest.mark.parametrize("name", SPREADS)
def test_a_pack_says_what_its_files_say(table: Trained, gang: Gang, name: str, tmp_path: Path) -> None:
    names = ("model.onnx", "model.safetensors", "model.json")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "model.thpack").write_bytes(pack_files({name: (table.artifact / name).read_bytes() for name in names}))
    records = [record.to_json() for record in file_records(packed, ["model.thpack"])]
    write_card(packed, {**read_card(table.artifact), "name": "packed", "stage": "pack", "files": records})
    data = table.data / "new.csv"
    scratch = tmp_path / "scratch"
    found = predict_with(packed, data, SPREADS[name], group=gang, scratch=scratch)
    expected = predict_with(table.artifact, data, SPREADS[name], group=gang)
    assert (found.outputs == expected.outputs).all()
    assert list(scratch.iterdir()) == []


def test_two_workers_have_measured_what_one_process_measures(table: Trained, language: Trained) -> None:
    for job in (table, language):
        for artifact in job.report.artifacts:
            checked = {c["name"]: c for c in artifacts.verify(job.artifact.with_name(artifact.name))["checks"]}
            value = artifact.measurement.metric.value
            assert checked["metric"]["ok"], checked
            assert f"{value:.6g} now, {value:.6g} recorded" in checked["metric"]["detail"]
    stages = table.artifact.parents[2] / "stages"
    assert not list(stages.rglob("part-*"))  # finished stages hold no shares


def test_a_worker_that_fails_keeps_nobody_waiting(gang: Gang, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ArtifactError, match="damaged"):
        run_work(gang, WorkRef("tests.ray.gang_works:share_or_fail"), tmp_path / "shares")
    assert time.monotonic() - started < 60


def test_a_gang_of_its_own_is_started_and_ended(table: Trained) -> None:
    events: list[str] = []
    here = predict_with(table.artifact, table.data / "new.csv")
    found = predict_with(
        table.artifact, table.data / "new.csv", Spread(workers=2), on_event=lambda event: events.append(event["event"])
    )
    assert (found.outputs == here.outputs).all()
    assert events[:2] == ["connected", "workers_started"]
    assert set(events[2:]) == {"predicted"}
