"""How predictions are spread and where they go: what is refused before anything starts, and the files written."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.compress.pack import pack_files
from jobs.errors import ArtifactError, SpecError
from jobs.export.card import file_records, write_card
from jobs.export.onnx import export_onnx
from jobs.layout import ParallelLayout
from jobs.models.build import build, save_model
from jobs.records import Signature
from jobs.spec.load import model_section
from orchestrator.predicted import Predictions, check_out, prediction_line, write_predictions
from orchestrator.prediction import Spread, predict_with

TEXT = Signature(kind="tokens", input_shape=(6,), outputs=3, num_codes=(9,))
TABLE = Signature(kind="vector", input_shape=(4,), outputs=3)
MODELS: dict[str, tuple[dict[str, Any], Signature]] = {
    "transformer": ({"name": "transformer", "args": {"layers": 1, "width": 16, "heads": 4}}, TEXT),
    "lstm": ({"name": "lstm", "args": {"hidden": 8, "embedding": 4}}, TEXT),
    "mlp": ({"name": "mlp", "args": {"hidden": [8]}}, TABLE),
    "odd": ({"name": "mlp", "args": {"hidden": [7, 12, 5]}}, TABLE),
}


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    """artifact("transformer", stage=…) -> the folder of one with that model; its ONNX file is real if `served`."""

    def make(
        model: str, *, served: bool = False, files: tuple[str, ...] = ("model.safetensors", "model.json"), **card: Any
    ) -> Path:
        document, signature = MODELS[model]
        folder = tmp_path / f"{model}-{len(files)}"
        module = build(model_section(document), signature, seed=0).eval()
        save_model(module, {"model": document, "signature": signature.to_json()}, folder)
        if served:
            export_onnx(module, signature, folder / "model.onnx", {})
        else:
            (folder / "model.onnx").write_bytes(b"never opened")
        records = [record.to_json() for record in file_records(folder, ["model.onnx", *files])]
        encoding: dict[str, Any] = {"kind": "tokens", "steps": 6, "vocabulary": 9}
        if signature is TABLE:
            numeric = [
                {"name": f"x{i}", "fill": 0.0, "shift": 0.0, "divisor": 1.0, "indicator": False} for i in range(4)
            ]
            encoding = {"kind": "table", "numeric": numeric, "categorical": []}
        named = {"name": model, "parent": None, "stage": "dense", "task": "classification", "classes": ["a", "b", "c"]}
        write_card(folder, {"files": records, "encoding": encoding, **named, **card})
        return folder

    return make


def tokens(path: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 8, (count, 6)), lengths=rng.integers(1, 7, count))
    return path


@pytest.mark.parametrize(
    ("spread", "layout"),
    [
        (Spread(), ParallelLayout()),
        (Spread(workers=3), ParallelLayout(data=3)),
        (Spread(tensor=2), ParallelLayout(tensor=2)),
        (Spread(workers=8, tensor=2, pipeline=2), ParallelLayout(data=2, tensor=2, pipeline=2)),
    ],
)
def test_workers_and_degrees_make_a_layout(spread: Spread, layout: ParallelLayout) -> None:
    assert spread.layout == layout


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        (Spread(workers=0), r"--workers.*\(got 0\); allowed: at least 1"),
        (Spread(tensor=-1), r"--tensor.*\(got -1\)"),
        (Spread(pipeline=0), r"--pipeline.*\(got 0\)"),
        (Spread(workers=3, tensor=2), r"--workers.*2 × 1.*\(got 3\); allowed: a multiple of 2"),
        (Spread(workers=1, pipeline=2), r"--workers.*1 × 2.*allowed: a multiple of 2"),
    ],
)
def test_what_does_not_go_together_is_refused(spread: Spread, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        predict_with(tmp_path, tmp_path, spread)


@pytest.mark.parametrize(
    ("name", "spread", "message"),
    [
        ("lstm", Spread(tensor=2), r"--tensor: no tensor parallelism.*whole state of the one before.*allowed: 1"),
        ("transformer", Spread(tensor=8), r"--tensor:.*greatest common divisor is 4 .*heads.*allowed: 1, 2, 4"),
        ("odd", Spread(tensor=2), r"--tensor: no tensor parallelism.*no common divisor"),
        ("transformer", Spread(pipeline=4), r"--pipeline: a stage has at least one block, and the model has 3"),
    ],
)
def test_a_model_that_does_not_take_the_layout_is_refused(
    artifact: Callable[..., Path], name: str, spread: Spread, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        predict_with(artifact(name), tokens(tmp_path / "x.npz"), spread)


def test_what_has_no_file_to_divide_is_refused_and_told_what_to_do(
    artifact: Callable[..., Path], tmp_path: Path
) -> None:
    x = tokens(tmp_path / "x.npz")
    quantized = artifact("transformer", files=(), stage="quantize", name="dense-int8", parent="dense")
    with pytest.raises(SpecError, match=r"--tensor: dense-int8 is quantized.*--workers 2 alone.*'dense'"):
        predict_with(quantized, x, Spread(tensor=2))
    bare = artifact("transformer", files=("model.json",))
    with pytest.raises(SpecError, match=r"--pipeline:.*model\.safetensors.*--workers 4 alone.*export\.formats"):
        predict_with(bare, x, Spread(workers=4, pipeline=2))


def test_what_a_pack_restores_is_divided(artifact: Callable[..., Path], tmp_path: Path) -> None:
    x = tokens(tmp_path / "x.npz")
    whole = artifact("transformer", served=True)
    packed = tmp_path / "packed"
    packed.mkdir()
    names = ("model.onnx", "model.safetensors", "model.json")
    (packed / "model.thpack").write_bytes(pack_files({name: (whole / name).read_bytes() for name in names}))
    card = json.loads((whole / "artifact.json").read_text())
    records = [record.to_json() for record in file_records(packed, ["model.thpack"])]
    write_card(packed, {**card, "stage": "pack", "files": records})
    scratch = tmp_path / "scratch"
    with pytest.raises(SpecError, match=r"--tensor:.*greatest common divisor is 4"):
        predict_with(packed, x, Spread(tensor=8), scratch=scratch)
    assert list(scratch.iterdir()) == []
    assert list(predict_with(packed, x, scratch=scratch)) == list(predict_with(whole, x))
    assert list(scratch.iterdir()) == []


def test_a_damaged_model_is_an_artifact_error(artifact: Callable[..., Path], tmp_path: Path) -> None:
    folder = artifact("transformer")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"model\.safetensors has .* bytes"):
        predict_with(folder, tokens(tmp_path / "x.npz"), Spread(tensor=2))
    # Damaged, and the card says so as well: what reads it must see it.
    card = json.loads((folder / "artifact.json").read_text())
    records = [record.to_json() for record in file_records(folder, [each["path"] for each in card["files"]])]
    write_card(folder, card | {"files": records})
    with pytest.raises(ArtifactError, match="no readable model"):
        predict_with(folder, tokens(tmp_path / "x.npz"), Spread(pipeline=2))


def test_one_worker_needs_no_cluster(artifact: Callable[..., Path], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    folder = artifact("transformer", served=True)
    found = predict_with(folder, tokens(tmp_path / "x.npz", 600), on_event=events.append)
    assert len(found) == len(list(found)) == 600
    assert {event["event"] for event in events} == {"predicted"}
    assert events[-1]["total"] == 600
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


CLASSES = Predictions(np.array([[0.0, 2.0], [1.0, -1.0]], np.float32), "classification", ("no", "yes, sir"))
BINARY = Predictions(np.array([[2.0], [-1.0]], np.float32), "classification", ("no", "yes"))
VALUES = Predictions(np.array([[1.5], [-2.25]], np.float32), "regression")


def test_rows_of_each_kind() -> None:
    first, second = CLASSES
    assert first == {"prediction": "yes, sir", "probabilities": {"no": 0.119203, "yes, sir": 0.880797}}
    assert prediction_line(second) == "no"
    assert [row["prediction"] for row in BINARY] == ["yes", "no"]
    assert list(VALUES) == [{"prediction": 1.5}, {"prediction": -2.25}]


@pytest.mark.parametrize("predictions", [CLASSES, BINARY, VALUES], ids=["classes", "binary", "values"])
def test_files_hold_the_rows(predictions: Predictions, tmp_path: Path) -> None:
    rows = list(predictions)
    flat = [
        {"prediction": row["prediction"]} | {f"probability_{n}": p for n, p in row.get("probabilities", {}).items()}
        for row in rows
    ]
    for suffix in (".jsonl", ".csv", ".parquet"):
        write_predictions(predictions, tmp_path / "new" / f"out{suffix}")
    lines = (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    with (tmp_path / "new" / "out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in flat]
    assert pq.read_table(tmp_path / "new" / "out.parquet").to_pylist() == flat
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".jsonl", ".csv", ".parquet"}


def test_files_of_no_predictions_have_their_columns(tmp_path: Path) -> None:
    nothing = Predictions(np.zeros((0, 2)), "classification", ("no", "yes"))
    for suffix in (".jsonl", ".csv", ".parquet"):
        write_predictions(nothing, tmp_path / f"out{suffix}")
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert (tmp_path / "out.csv").read_text().strip() == "prediction,probability_no,probability_yes"
    assert pq.read_table(tmp_path / "out.parquet").column_names == list(nothing.columns)


def test_a_file_that_can_not_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--out.*allowed: \.jsonl, \.csv, \.parquet; did you mean '\.jsonl'"):
        check_out(tmp_path / "out.json")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SpecError, match="folder"):
        check_out(tmp_path / "folder.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="no folder"):
        check_out(tmp_path / "file" / "out.csv")
    check_out(tmp_path / "new" / "folders" / "out.CSV")


def test_the_old_file_stays_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before\n")
    broken = Predictions(np.zeros((1, 3)), "classification", ("no", "yes"))  # three outputs, two names
    with pytest.raises(ValueError, match="zip"):
        write_predictions(broken, path)
    assert path.read_text() == "before\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]
