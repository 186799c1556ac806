"""`thresher predict` with a pruned and with a quantized model of every family, from files as users have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.compress import prune_structured
from jobs.compress.quantize import quantize_onnx
from jobs.data import Dataset, prepare, read_samples
from jobs.export import export_onnx
from jobs.export.card import file_records, write_card
from jobs.models.build import build, load_model, save_model
from jobs.spec.data import Data
from jobs.spec.load import model_section
from orchestrator.prediction import predict_with

RNG = np.random.default_rng(0)
WORDS = ["loss", "falls", "step", "by", "and", "every", "layout", "agrees"]
SCHEMES = {"resnet": "int8_static", "lenet": "int8_static"}
"""Of the others int8_dynamic, which suits products and recurrence."""
MODELS: dict[str, dict[str, Any]] = {
    "lenet": {"conv_widths": [4, 8], "linear_widths": [16], "batch_norm": True},
    "resnet": {"depth": 8, "width": 8},
    "mlp": {"hidden": [32, 16]},
    "lstm": {"hidden": 16},
    "transformer": {"layers": 1, "width": 16, "heads": 2},
    "recommender": {"embedding": 8, "hidden": [16]},
}
COUNT = 60


def images(folder: Path) -> tuple[dict[str, Any], Path]:
    x = RNG.integers(0, 256, (COUNT, 8, 8)).astype(np.uint8)
    np.savez(folder / "data.npz", x=x, y=np.arange(COUNT) % 3)
    np.savez(folder / "new.npz", x=x[:7])
    return {"source": {"kind": "npz", "path": str(folder / "data.npz")}}, folder / "new.npz"


def rows(folder: Path) -> tuple[dict[str, Any], Path]:
    lines = [f"{RNG.normal():.3f},{RNG.normal():.3f},{'red' if i % 2 else 'blue'},{'abc'[i % 3]}" for i in range(COUNT)]
    header = "length,width,colour,kind"
    (folder / "data.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "new.csv").write_text("\n".join([header, *lines[:7]]) + "\n")
    return {"source": {"kind": "csv", "path": str(folder / "data.csv")}, "target": "kind"}, folder / "new.csv"


def ratings(folder: Path) -> tuple[dict[str, Any], Path]:
    document, new = rows(folder)
    return {**document, "categories": "codes"}, new


def sequences(folder: Path) -> tuple[dict[str, Any], Path]:
    x, lengths = RNG.standard_normal((COUNT, 9, 3)).astype(np.float32), RNG.integers(1, 10, COUNT)
    lengths[0] = 9
    np.savez(folder / "data.npz", x=x, y=np.arange(COUNT) % 3, lengths=lengths)
    np.savez(folder / "new.npz", x=x[:7], lengths=lengths[:7])
    return {"source": {"kind": "npz", "path": str(folder / "data.npz")}}, folder / "new.npz"


def texts(folder: Path) -> tuple[dict[str, Any], Path]:
    lines = [" ".join(RNG.choice(WORDS, RNG.integers(2, 6))) for _ in range(COUNT)]
    documents = [json.dumps({"text": line, "kind": "abc"[i % 3]}) for i, line in enumerate(lines)]
    (folder / "data.jsonl").write_text("\n".join(documents) + "\n")
    (folder / "new.txt").write_text("\n".join(lines[:7]) + "\n")
    tokenizer = {"kind": "word", "vocab_size": 16}
    source = {"kind": "text", "path": str(folder / "data.jsonl"), "length": 8, "tokenizer": tokenizer}
    return {"source": source, "target": "kind"}, folder / "new.txt"


SOURCES = {
    "lenet": images,
    "resnet": images,
    "mlp": rows,
    "lstm": sequences,
    "transformer": texts,
    "recommender": ratings,
}


@pytest.mark.parametrize("family", MODELS)
def test_pruned_and_quantized_models_of_every_family_predict(family: str, tmp_path: Path) -> None:
    document, new = SOURCES[family](tmp_path)
    prepare(Data.model_validate(document), "cross_entropy", tmp_path / "prepared")
    dataset = Dataset.open(tmp_path / "prepared")
    encoding, signature = dataset.encoding("standardize"), dataset.info.signature
    model = {"name": family, "args": MODELS[family]}
    pruned = prune_structured(build(model_section(model), signature, seed=0), signature, ratio=0.25).eval()

    floats, integers = tmp_path / "pruned", tmp_path / "pruned-int8"
    save_model(pruned, {"model": model, "signature": signature.to_json(), "pruned": True}, floats)
    export_onnx(pruned, signature, floats / "model.onnx", {})
    integers.mkdir()
    calibration = dataset.encoded("train", np.arange(dataset.num_samples("train")), encoding)
    quantize_onnx(
        floats / "model.onnx", integers / "model.onnx", SCHEMES.get(family, "int8_dynamic"), np.asarray(calibration)
    )
    for folder in (floats, integers):
        records = [record.to_json() for record in file_records(folder, sorted(p.name for p in folder.iterdir()))]
        card = {"files": records, "encoding": encoding.to_json(), "task": "classification"}
        write_card(folder, {**card, "classes": list(dataset.info.classes)})

    x = encoding.encode(read_samples(new, encoding))
    with torch.no_grad():
        expected = (
            load_model(floats).eval()(torch.from_numpy(np.asarray(x))).numpy()
        )  # from safetensors and the recipe alone
    found = predict_with(floats, new)
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert [row["prediction"] for row in found] == [dataset.info.classes[label] for label in expected.argmax(axis=1)]
    rounded = predict_with(integers, new).outputs
    assert 0 < np.square(rounded - expected).mean() < 0.05 * expected.var()
