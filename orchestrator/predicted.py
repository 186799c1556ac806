"""What was predicted, sample by sample: as rows, as lines for people, and as a file."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.data import TextEncoding
from jobs.errors import SpecError
from jobs.measure.outputs import softmax
from jobs.spec.problems import nearest
from jobs.storage import atomic_path

SUFFIXES = (".jsonl", ".csv", ".parquet")
_ROW_GROUP = 16_384


@dataclass(frozen=True)
class Predictions:
    """What a model has said of some samples, in their order.

    Attributes:
        outputs: logits (n, classes), or (n, 1) of the second of two; values (n, 1); of a language model (n, 2): the
            next token's code and its probability.
        task: as in the artifact's card.
        classes: names in label order.
        prompts: of a language model, the texts' codes (n, steps), and what they are encoded by.
    """

    outputs: npt.NDArray[Any]
    task: str
    classes: tuple[str, ...] = ()
    prompts: tuple[TextEncoding, npt.NDArray[Any]] | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a table of the rows."""
        if self.task == "language_model":
            return ("prediction", "probability")
        return ("prediction", *(f"probability_{name}" for name in self.classes))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Of classes {prediction, probabilities}; of values {prediction}; of texts {prediction, probability}."""
        if self.prompts is not None:
            yield from self._next_tokens(*self.prompts)
        elif self.task == "regression":
            yield from ({"prediction": float(value)} for value in self.outputs[:, 0])
        else:
            for outputs in np.array_split(self.outputs, max(1, len(self) // _ROW_GROUP)):
                yield from (self._of_classes(row) for row in _probabilities(outputs.astype(np.float64)))

    def _of_classes(self, probabilities: npt.NDArray[np.float64]) -> dict[str, Any]:
        return {
            "prediction": self.classes[int(probabilities.argmax())],
            "probabilities": {n: round(float(p), 6) for n, p in zip(self.classes, probabilities, strict=True)},
        }

    def _next_tokens(self, encoding: TextEncoding, prompts: npt.NDArray[Any]) -> Iterator[dict[str, Any]]:
        for prompt, (code, probability) in zip(prompts, self.outputs, strict=True):
            text = encoding.continuation(prompt[: (prompt != 0).sum()], int(code))
            yield {"prediction": text, "probability": round(float(probability), 6)}


def prediction_line(prediction: dict[str, Any]) -> str:
    """One prediction for people; a token in quotes, since it may be a space or the end of a line."""
    value = prediction["prediction"]
    if "probability" not in prediction:
        return str(value)
    return f"{json.dumps(value, ensure_ascii=False)}  {prediction['probability']:.4f}"


def check_out(path: Path) -> None:
    """Refuses a file of a kind that predictions are not written to, before anything is computed. Raises SpecError."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        near = nearest(suffix, list(SUFFIXES))
        raise SpecError.at("--out", "predictions are not written to such a file", str(path), ", ".join(SUFFIXES), near)
    if path.is_dir():
        raise SpecError.at("--out", "this is a folder", str(path), "the name of a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise SpecError.at("--out", f"{there} is no folder", str(path), "a file in a folder")


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Writes a file of the kind that its suffix says, atomically: JSON lines, CSV or Parquet. Raises StorageError."""
    with atomic_path(path) as temporary:
        match path.suffix.lower():
            case ".jsonl":
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
            case ".csv":
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, predictions.columns)
                    writer.writeheader()
                    writer.writerows(map(_flat, predictions))
            case _:
                _write_parquet(predictions, temporary)


def _write_parquet(predictions: Predictions, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    value = pa.float64() if predictions.task == "regression" else pa.string()
    fields = [(name, pa.float64() if index else value) for index, name in enumerate(predictions.columns)]
    schema, rows = pa.schema(fields), map(_flat, predictions)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table."""
    flat = {key: value for key, value in row.items() if key != "probabilities"}
    return flat | {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}


def _probabilities(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if logits.shape[1] == 1:  # bce: one logit, of the second class
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return softmax(logits)
