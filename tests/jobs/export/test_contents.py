"""What a card must say: whatever else stands there is an ArtifactError that names the place."""

import copy
from pathlib import Path
from typing import Any

import pytest

from jobs.data.encodings import ImageEncoding
from jobs.errors import ArtifactError
from jobs.export.contents import Serving, Verifying

ENCODING = ImageEncoding(shape=(1, 2, 2), dtype="uint8", max_value=255.0, scale=1.0, mean=(0.0,), std=(1.0,))
CARD: dict[str, Any] = {
    "task": "classification",
    "classes": ["a", "b"],
    "encoding": ENCODING.to_json(),
    "dataset": {"fingerprint": "3f65" * 16},
    "reference": {"split": "validation", "ids": [0, 1], "outputs": [[0.5, 1.0], [2, 3]]},
    "measurement": {"metric": {"name": "accuracy", "split": "validation", "value": 0.9, "n": 7}},
}


def test_what_a_card_says(tmp_path: Path) -> None:
    found = Verifying.of(CARD, tmp_path)
    assert (found.task, found.classes, found.encoding) == ("classification", ("a", "b"), ENCODING)
    assert found.reference.outputs == ((0.5, 1.0), (2.0, 3.0))
    assert Serving.of({key: CARD[key] for key in ("task", "encoding")}, tmp_path).classes == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task", "poetry"),
        ("classes", "ab"),
        ("encoding", None),
        ("dataset", {}),
        ("dataset.fingerprint", "../elsewhere"),
        ("reference.ids", []),
        ("reference.ids", [-1, 0]),
        ("reference.outputs", [[1.0], [1.0, 2.0]]),
        ("reference.outputs", [[1.0, 2.0]]),
        ("measurement.metric.name", "beauty"),
        ("measurement.metric.value", "high"),
    ],
)
def test_a_card_with_something_else_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    card = copy.deepcopy(CARD)
    *above, last = path.split(".")
    place = card
    for key in above:
        place = place[key]
    place[last] = value
    with pytest.raises(ArtifactError, match=rf"artifact.json is damaged: {path.split('.')[0]}"):
        Verifying.of(card, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"kind": "smell"}, {"mean": []}, {"std": [1.0, 1.0]}, {"std": [0.0]}, {"shape": [1, 2]}]
)
def test_a_damaged_encoding_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        _ = Serving.of({**CARD, "encoding": CARD["encoding"] | changes}, tmp_path).encoding
