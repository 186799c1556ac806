"""`thresher predict` with artifacts that take text: models small enough to be written down by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from jobs.compress.pack import pack_files
from jobs.data import Dataset, TextEncoding, prepare
from jobs.errors import ArtifactError, DataError
from jobs.export.card import file_records, write_card
from jobs.spec.data import Data
from orchestrator.predicted import prediction_line
from orchestrator.prediction import predict_with


def write_artifact(folder: Path, table: np.ndarray, encoding: TextEncoding, *, summed: bool, **card: Any) -> Path:
    """A model that looks the outputs of each token up in a table (codes, outputs), and may sum them."""
    codes = helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", encoding.steps])
    shape = ["batch", table.shape[1]] if summed else ["batch", encoding.steps, table.shape[1]]
    nodes = [helper.make_node("Gather", ["table", "x"], ["found" if summed else "y"])]
    if summed:
        nodes.append(helper.make_node("ReduceSum", ["found", "steps"], ["y"], keepdims=0))
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "steps")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "table", [codes], outputs, weights if summed else weights[:1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    records = [record.to_json() for record in file_records(folder, ["model.onnx"])]
    write_card(folder, {"files": records, "encoding": encoding.to_json(), **card})
    return folder


def encoding_of(path: Path, tmp_path: Path, target: str | None, **source: Any) -> TextEncoding:
    document = {"source": {"kind": "text", "path": str(path), "tokenizer": {"kind": "byte"}, **source}}
    prepare(Data.model_validate({**document, "target": target}), "cross_entropy", tmp_path / "prepared")
    encoding = Dataset.open(tmp_path / "prepared").encoding("none")
    assert isinstance(encoding, TextEncoding)
    return encoding


def code(character: str, encoding: TextEncoding) -> int:
    return int(encoding.text_tokenizer.encode([character], special=False)[0][0])


@pytest.fixture
def bigrams(tmp_path: Path) -> Path:
    """A language model in which b follows a, the end of a line b, and the end of the document anything else."""
    (tmp_path / "documents.jsonl").write_text('{"text": "ab ab ab ab"}\n' * 60)
    encoding = encoding_of(tmp_path / "documents.jsonl", tmp_path, None, length=8)
    table = np.zeros((encoding.vocabulary, encoding.vocabulary), np.float32)
    table[:, 0] = table[:, -1] = 50.0  # padding, and a code that rounding added: no tokens
    table[:, encoding.separator] = 1.0
    table[code("a", encoding), code("b", encoding)] = 60.0
    table[code("b", encoding), code("\n", encoding)] = 2.0
    return write_artifact(tmp_path / "model", table, encoding, summed=False, task="language_model", classes=[])


def test_a_language_model_says_what_follows_each_line(bigrams: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\na long line that ends with b\nbb bb bb a\n?\n")
    found = list(predict_with(bigrams, tmp_path / "prompts.txt"))
    assert [row["prediction"] for row in found] == ["b", "\n", "b", "<end>"]
    assert found[0]["probability"] == pytest.approx(np.exp(60) / (np.exp(60) + 2 * np.exp(50)), abs=1e-4)
    assert prediction_line(found[1]).startswith('"\\n"  ')


def test_a_packed_artifact_is_unpacked_first(bigrams: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nab\n")
    expected = list(predict_with(bigrams, tmp_path / "prompts.txt"))
    files = {"model.onnx": (bigrams / "model.onnx").read_bytes(), "model.safetensors": save({}), "model.json": b"{}"}
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "model.thpack").write_bytes(pack_files(files))
    card = json.loads((bigrams / "artifact.json").read_text())
    records = [record.to_json() for record in file_records(packed, ["model.thpack"])]
    write_card(packed, {**card, "files": records})
    assert list(predict_with(packed, tmp_path / "prompts.txt")) == expected
    assert sorted(path.name for path in packed.iterdir()) == ["artifact.json", "model.thpack"]
    (packed / "model.thpack").write_bytes(b"THPK")
    with pytest.raises(ArtifactError):
        predict_with(packed, tmp_path / "prompts.txt")


def test_prompts_may_lie_in_a_column(bigrams: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("text\naa\nab\n")
    assert [row["prediction"] for row in predict_with(bigrams, tmp_path / "prompts.csv")] == ["b", "\n"]


def test_outputs_that_are_not_finite_are_refused(bigrams: Path, tmp_path: Path) -> None:
    card = json.loads((bigrams / "artifact.json").read_text())
    encoding = TextEncoding.model_validate(card["encoding"])
    table = np.full((encoding.vocabulary, 8), np.nan, np.float32)
    broken = write_artifact(tmp_path / "broken", table, encoding, summed=False, task="language_model")
    (tmp_path / "prompts.txt").write_text("a\n")
    with pytest.raises(ArtifactError, match="not finite"):
        predict_with(broken, tmp_path / "prompts.txt")


def test_text_is_classified(tmp_path: Path) -> None:
    """By which letter it has more of."""
    rows = [{"words": "ab"[i % 2] * (1 + i % 5), "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoding = encoding_of(tmp_path / "rows.jsonl", tmp_path, "label", column="words", length=8)
    table = np.zeros((encoding.vocabulary, 2), np.float32)
    table[code("a", encoding), 0] = table[code("b", encoding), 1] = 1.0
    classifier = write_artifact(
        tmp_path / "model", table, encoding, summed=True, task="classification", classes=["a", "b"]
    )
    (tmp_path / "new.txt").write_text("aab\nbbbb\n")
    found = list(predict_with(classifier, tmp_path / "new.txt"))
    assert [prediction_line(row) for row in found] == ["a", "b"]
    assert found[0]["probabilities"]["a"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)
    (tmp_path / "long.txt").write_text("a\naaaaaaaaab\n")
    with pytest.raises(DataError, match=r"text 2 of .*long\.txt has 10 tokens"):
        predict_with(classifier, tmp_path / "long.txt")
