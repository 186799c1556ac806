"""What a run hands over: artifact folders, and what can be done with one long after the run."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.compress.pack import unpack
from jobs.data import Dataset, Encoding, TextEncoding, read_samples
from jobs.errors import ArtifactError, DataError
from jobs.export.card import read_card, write_card
from jobs.measure.metrics import interval
from jobs.measure.session import predict, predict_condensed, predictions
from jobs.records import Artifact
from jobs.requests import PACK_NAME
from jobs.spec import JobSpec
from orchestrator.stages import Model, Stages

PARITY_TOLERANCE = 1e-4
"""Relative to the largest output: what another processor's arithmetic may change in a float model."""
NUM_REFERENCES = 16


def write_files(folder: Path, model: Model, stages: Stages, spec: JobSpec) -> list[str]:
    """Copies a model's files into its artifact folder; returns their names. The card comes later, and last."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.packed:
        shutil.copyfile(stages.folder(model.manifest) / PACK_NAME, folder / PACK_NAME)
        return [PACK_NAME]
    names = ["model.onnx"]
    shutil.copyfile(stages.folder(model.manifest) / "model.onnx", folder / "model.onnx")
    if "safetensors" in spec.export.formats and model.stage != "quantize":
        for name in ("model.safetensors", "model.json"):
            shutil.copyfile(stages.folder(model.stored) / "model" / name, folder / name)
            names.append(name)
    return names


@contextmanager
def model_file(folder: Path) -> Iterator[Path]:
    """The ONNX file of an artifact; of a pack, what it restores, for as long as it is used.

    Raises ArtifactError if the pack is damaged.
    """
    if not (folder / PACK_NAME).is_file():
        yield folder / "model.onnx"
        return
    with tempfile.TemporaryDirectory(prefix="thresher-") as temporary:
        yield unpack(folder / PACK_NAME, Path(temporary))["model.onnx"]


def finish(folder: Path, artifact: Artifact, spec: JobSpec, dataset: Dataset, run_id: str) -> None:
    """Writes the card: everything that is needed to use the files, and to check what is claimed of them."""
    encoding = dataset.encoding(spec.data.normalize)
    references = np.arange(min(NUM_REFERENCES, dataset.num_samples("validation")))
    x, y = dataset.encoded("validation", references, encoding), dataset.targets("validation", references)
    with model_file(folder) as path:
        outputs = predict_condensed(path, x, y)
    write_card(
        folder,
        {
            **artifact.to_json(),
            "run_id": run_id,
            "task": dataset.info.task,
            "loss": spec.train.loss,
            "classes": list(dataset.info.classes),
            "encoding": encoding.to_json(),
            "dataset": {"fingerprint": dataset.fingerprint, "source": spec.resolved()["data"]["source"]},
            "reference": {
                "split": "validation",
                "ids": references.tolist(),
                "outputs": outputs.astype(float).tolist(),
            },
        },
    )


def verify(folder: Path, datasets: Path | None = None) -> dict[str, Any]:
    """Checks an artifact: files by SHA-256, outputs against the recorded ones, the metric measured again.

    Args:
        datasets: where prepared data sets lie; default: of the storage that the artifact's run is in.

    Returns {"checks": [{name, ok, detail}], "ok"}. Without the data set the checks that need it are not ok.

    Raises:
        ArtifactError: the folder holds no artifact, or its files are not those of the card.
    """
    card = read_card(folder)
    checks = [{"name": "sha256", "ok": True, "detail": f"{len(card['files'])} files are as recorded"}]
    root = datasets or folder.absolute().parents[2] / "datasets"
    fingerprint = card["dataset"]["fingerprint"]
    try:
        dataset = Dataset.open(root / fingerprint)
    except DataError as error:
        detail = f"the data set is not in {root}: {error}"
        checks += [{"name": name, "ok": False, "detail": detail} for name in ("outputs", "metric")]
        return {"checks": checks, "ok": False}
    encoding = Encoding.from_json(card["encoding"])
    with model_file(folder) as path:
        checks.append(_same_outputs(path, card, dataset, encoding))
        checks.append(_same_metric(path, card, dataset, encoding))
    return {"checks": checks, "ok": all(check["ok"] for check in checks)}


def _same_outputs(path: Path, card: dict[str, Any], dataset: Dataset, encoding: Encoding) -> dict[str, Any]:
    reference = card["reference"]
    expected = np.asarray(reference["outputs"], dtype=np.float32)
    ids = np.asarray(reference["ids"])
    x, y = dataset.encoded(reference["split"], ids, encoding), dataset.targets(reference["split"], ids)
    difference = float(np.abs(predict_condensed(path, x, y) - expected).max())
    allowed = PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    detail = f"{len(expected)} samples differ by at most {difference:.2g} (allowed {allowed:.2g})"
    return {"name": "outputs", "ok": difference <= allowed, "detail": detail}


def _same_metric(path: Path, card: dict[str, Any], dataset: Dataset, encoding: Encoding) -> dict[str, Any]:
    recorded = card["measurement"]["metric"]
    split = recorded["split"]
    x, y = dataset.encoded(split, np.arange(dataset.num_samples(split)), encoding), dataset.targets(split)
    now = interval(recorded["name"], predict_condensed(path, x, y), y, split=split)
    same = abs(now.value - recorded["value"]) <= 1e-3 * max(1.0, abs(recorded["value"]))
    detail = f"{recorded['name']} on {split}: {now.value:.6g} now, {recorded['value']:.6g} recorded (n = {now.n})"
    return {"name": "metric", "ok": same, "detail": detail}


def predict_with(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Predictions for new samples, from the artifact alone: one dictionary each.

    Of classes {prediction, probabilities}; of values {prediction}; of a language model, for each text the most likely
    next token {prediction, probability}.

    Raises:
        ArtifactError: the artifact is damaged.
        DataError: the data cannot be read as what the model takes.
    """
    card = read_card(folder)
    encoding = Encoding.from_json(card["encoding"])
    raw = read_samples(data, encoding)
    if card["task"] == "language_model":
        if not isinstance(encoding, TextEncoding) or not isinstance(raw, np.ndarray):
            raise ArtifactError(f"{folder} has a language model without a tokenizer")
        with model_file(folder) as path:
            return _next_tokens(path, encoding, raw)
    with model_file(folder) as path:
        outputs = predict(path, encoding.encode(raw)).astype(np.float64)
    _check_finite(outputs, folder)
    if card["task"] == "regression":
        return [{"prediction": float(row[0])} for row in outputs]
    probabilities = _probabilities(outputs)
    classes = card["classes"]
    return [
        {
            "prediction": classes[int(row.argmax())],
            "probabilities": {name: round(float(p), 6) for name, p in zip(classes, row, strict=True)},
        }
        for row in probabilities
    ]


def prediction_line(prediction: dict[str, Any]) -> str:
    """One prediction for people; a token in quotes, since it may be a space or the end of a line."""
    value = prediction["prediction"]
    if "probability" not in prediction:
        return str(value)
    return f"{json.dumps(value, ensure_ascii=False)}  {prediction['probability']:.4f}"


def _next_tokens(path: Path, encoding: TextEncoding, prompts: npt.NDArray[np.int32]) -> list[dict[str, Any]]:
    """What most likely follows each prompt, (prompts, steps), by the logits of its last token."""
    rows: list[dict[str, Any]] = []
    lengths = (prompts != 0).sum(axis=1)
    for outputs in predictions(path, encoding.encode(prompts)):
        batch = slice(len(rows), len(rows) + len(outputs))
        logits = outputs[np.arange(len(outputs)), lengths[batch] - 1].astype(np.float64)
        _check_finite(logits, path)
        for prompt, length, row in zip(prompts[batch], lengths[batch], _probabilities(logits), strict=True):
            code = 1 + int(row[1 : encoding.last_code + 1].argmax())  # never the padding, nor what rounding added
            text = encoding.continuation(prompt[:length], code)
            rows.append({"prediction": text, "probability": round(float(row[code]), 6)})
    return rows


def _check_finite(outputs: npt.NDArray[np.float64], source: Path) -> None:
    if not np.isfinite(outputs).all():
        raise ArtifactError(f"{source} gives outputs that are not finite")


def _probabilities(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if logits.shape[1] == 1:  # bce: one logit, of the second class
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
