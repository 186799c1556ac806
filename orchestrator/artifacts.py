"""What a run hands over: artifact folders, and what can be done with one long after the run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jobs.data import Dataset, Encoding
from jobs.errors import ArtifactError, DataError
from jobs.export.card import read_card, write_card
from jobs.export.contents import Verifying
from jobs.measure.metrics import interval
from jobs.measure.session import predict_condensed
from jobs.records import Artifact
from jobs.requests import PACK_NAME
from jobs.spec import JobSpec
from orchestrator.environment import environment
from orchestrator.stages import Model, Stages
from orchestrator.unpacked import model_file

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
            "environment": {**environment(), "threads": 1},
            "target": None if spec.compress.target is None else spec.compress.target.model_dump(mode="json"),
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
    recorded = Verifying.of(card, folder)
    checks = [{"name": "sha256", "ok": True, "detail": f"{len(card['files'])} files are as recorded"}]
    root = datasets or folder.absolute().parents[2] / "datasets"
    try:
        dataset = Dataset.open(root / recorded.dataset.fingerprint)
    except DataError as error:
        detail = f"the data set is not in {root}: {error}"
        checks += [{"name": name, "ok": False, "detail": detail} for name in ("outputs", "metric")]
        return {"checks": checks, "ok": False}
    for split in (recorded.reference.split, recorded.measurement.metric.split):
        if split not in dataset.info.num_samples:
            raise ArtifactError(f"{folder}: the card speaks of a split that the data set has not: {split!r}")
    if max(recorded.reference.ids) >= dataset.num_samples(recorded.reference.split):
        raise ArtifactError(f"{folder}: the card names samples that the data set has not")
    encoding = recorded.encoding
    with model_file(folder) as path:
        checks.append(_same_outputs(path, recorded, dataset, encoding))
        checks.append(_same_metric(path, recorded, dataset, encoding))
    return {"checks": checks, "ok": all(check["ok"] for check in checks)}


def _same_outputs(path: Path, card: Verifying, dataset: Dataset, encoding: Encoding) -> dict[str, Any]:
    reference = card.reference
    expected, ids = np.asarray(reference.outputs, dtype=np.float32), np.asarray(reference.ids)
    x, y = dataset.encoded(reference.split, ids, encoding), dataset.targets(reference.split, ids)
    found = predict_condensed(path, x, y)
    if found.shape != expected.shape:
        detail = f"{found.shape[1]} for each sample, {expected.shape[1]} are recorded"
        return {"name": "outputs", "ok": False, "detail": detail}
    difference = float(np.abs(found - expected).max())
    allowed = PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    detail = f"{len(expected)} samples differ by at most {difference:.2g} (allowed {allowed:.2g})"
    return {"name": "outputs", "ok": difference <= allowed, "detail": detail}


def _same_metric(path: Path, card: Verifying, dataset: Dataset, encoding: Encoding) -> dict[str, Any]:
    recorded = card.measurement.metric
    split = recorded.split
    x, y = dataset.encoded(split, np.arange(dataset.num_samples(split)), encoding), dataset.targets(split)
    now = interval(recorded.name, predict_condensed(path, x, y), y, split=split)
    same = abs(now.value - recorded.value) <= 1e-3 * max(1.0, abs(recorded.value))
    detail = f"{recorded.name} on {split}: {now.value:.6g} now, {recorded.value:.6g} recorded (n = {now.n})"
    return {"name": "metric", "ok": same, "detail": detail}
