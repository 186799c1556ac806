"""card.md: what stands in it, that no name becomes markup, and that it disturbs nothing beside it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ArtifactError
from jobs.export.card import file_records, read_card, write_card
from jobs.records import RunReport
from jobs.spec.compress import Budget
from orchestrator.model_card import TO_FILL_IN, card_text, escaped, write_model_cards
from tests.orchestrator.test_report import HOSTILE, a_language_model, a_regression, a_report

SHA = "0e3da0e0edcf4b8022e2e69af9054c2ffbf9c269ce00000ebe26327415444c10"


def a_card(report: RunReport, name: str, **changes: Any) -> dict[str, Any]:
    """artifact.json as `orchestrator.artifacts.finish` writes it."""
    artifact = next(each for each in report.artifacts if each.name == name)
    card = {
        **artifact.to_json(),
        "files": [{"path": "model.onnx", "bytes": 41_930, "sha256": SHA}],
        "run_id": report.run_id,
        "task": report.dataset["task"],
        "loss": "cross_entropy",
        "classes": artifact.measurement.details.get("classes", []),
        "encoding": {"kind": "image", "shape": [1, 28, 28]},
        "environment": {**report.environment, "threads": 1},
        "target": None,
        "dataset": {"fingerprint": "3f65" * 16, "source": {"kind": "idx", "path": "data/fashion-mnist"}},
    }
    return {**card, **changes}


def test_a_card_states_what_was_recorded() -> None:
    report = a_report()
    text = card_text(a_card(report, "pruned-int8_static", recipe={"scheme": "int8_static"}), report)
    for words in (
        "# Model card: pruned-int8_static\n",
        "quantized model of the run lenet-fashion-20261104-091532-7f3a",
        "| fingerprint of the data | " + "3f65" * 16,
        "54,000 train, 6,000 validation, 10,000 test",
        f"| model.onnx | 41,930 | {SHA} |",
        "dense → pruned → pruned-int8_static.",
        '"scheme": "int8_static"',
        "| accuracy on validation | 92.81 % | 92.11 % … 93.47 % | 6,000 samples |",
        "| accuracy on test | 92.41 % | 91.88 % … 92.92 % | 10,000 samples |",
        "| against the dense model | −0.31 points: worse | −0.53 … −0.09 | 6,000 pairs |",
        "| latency, batch 1 | p50 49.7 µs, p90 58.6 µs |  | 2000 runs |",
        "| latency, batch 64 | p50 1.69 ms, p90 1.89 ms |  | 80 runs |",
        "| parity | 0.083 |",
        "slower than its parent (batch 1: 50 µs against 37 µs",
        "Selected by the run: this one.",
        "np.zeros((1, 1, 28, 28), np.float32)",
        "`input` is float32, batch × 1 × 28 × 28;",
        "thresher predict . --data SAMPLES",
        "| onnxruntime | 1.32.0 |",
        "| processor | AMD EPYC |",
    ):
        assert words in text, words
    assert text.count(TO_FILL_IN) == 2
    assert "None" not in text


def test_a_difference_that_may_be_none_is_said_to_be_so() -> None:
    report = a_report()
    text = card_text(a_card(report, "dense-int8_dynamic"), report)
    assert "−0.09 points: worse, but the interval holds no difference too | −0.31 … +0.13 |" in text
    assert "It was not measured on test" in text


def test_an_error_that_rises_is_worse() -> None:
    report = a_regression()
    text = card_text(a_card(report, "pruned"), report)
    assert (
        "| against the dense model | +0.30: worse, but the interval holds no difference too | −0.10 … +0.70 |" in text
    )


def test_tokens_are_whole_numbers_and_synthetic_data_are_called_so_first() -> None:
    report = a_language_model()
    text = card_text(a_card(report, "dense", encoding={"kind": "tokens"}), report)
    assert "np.zeros((1, 128), np.int64)" in text
    assert text.index("SYNTHETIC data") < text.index("## Model details")
    assert "the number of steps is free unless the model fixes it" in text


def test_a_budget_of_nothing_is_a_budget() -> None:
    report = a_report(budget_section=Budget(max_metric_drop=0.0, max_bytes=3000))
    text = card_text(a_card(report, "pruned-int8_static"), report)
    assert "- Budget: max metric drop 0.0, max bytes 3000; this artifact: does not fit." in text


def test_a_pack_is_unpacked_before_it_runs() -> None:
    report = a_report()
    files = [{"path": "model.thpack", "bytes": 5666, "sha256": SHA}]
    text = card_text(a_card(report, "dense", stage="pack", files=files), report)
    assert "after `thresher unpack model.thpack --out .`:" in text
    assert "all but its size is that of the file it restores" in text


@pytest.mark.parametrize("left_out", [True, False])
def test_without_a_measurement_no_figure_is_given(left_out: bool) -> None:
    report = a_report()
    card = a_card(report, "pruned", measurement=None, test_metric=None, verdict="")
    if left_out:
        del card["measurement"]
    text = card_text(card, report)
    assert "Nothing was measured of this artifact" in text
    assert "this artifact: not known, since nothing was measured" in text
    assert "accuracy on" not in text
    assert SHA in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("int8_static", "int8_static"),
        ("_private_", r"\_private\_"),
        ("a|b", r"a\|b"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("**bold** `code`", r"\*\*bold\*\* \`code\`"),
        ("<b>&amp;\n# more", r"\<b\>\&amp; \# more"),
        ("C:\\data", r"C:\\data"),
    ],
)
def test_names_are_shown_as_they_are(name: str, shown: str) -> None:
    assert escaped(name) == shown


def test_hostile_names_are_text_and_nothing_else() -> None:
    odd = f"{HOSTILE}\n## Not a heading | ![x](y) ```"
    report = a_report(name=odd, warnings=(odd,))
    names = {"classes": [odd], "run_id": odd, "recipe": {odd: odd}, "verdict": odd}
    text = card_text(a_card(report, "dense", **names, dataset={"fingerprint": "f", "source": {"path": odd}}), report)
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert outside.count("alert(1)") >= 5
    assert not re.search(r"(?<!\\)<", outside)
    assert "\n## Not" not in text
    assert {line.count("|") - line.count("\\|") for line in outside.splitlines() if "alert" in line} <= {0, 3}


def test_cards_lie_beside_the_artifacts_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    report = a_report()
    for artifact in report.artifacts:
        folder = tmp_path / "artifacts" / artifact.name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"weights")
        records = [record.to_json() for record in file_records(folder, ["model.onnx"])]
        write_card(folder, a_card(report, artifact.name, files=records))
    write_model_cards(report, tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_model_cards(report, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    assert len(first) == 3 * len(report.artifacts)
    for artifact in report.artifacts:
        assert read_card(tmp_path / "artifacts" / artifact.name)["name"] == artifact.name


def test_a_card_is_written_of_a_whole_artifact_alone(tmp_path: Path) -> None:
    report = a_report()
    folder = tmp_path / "artifacts" / "dense"
    folder.mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"artifact\.json is missing"):
        write_model_cards(report, tmp_path)
    (folder / "artifact.json").write_text(json.dumps({"format_version": 1})[:-3])
    with pytest.raises(ArtifactError, match="is damaged"):
        write_model_cards(report, tmp_path)
    assert not list(tmp_path.rglob("card.md"))
