import json
from pathlib import Path

import pytest

from jobs.errors import ArtifactError
from jobs.export import FORMAT_VERSION, file_records, read_card, write_card


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    write_card(folder, {"name": "dense", "files": [r.to_json() for r in file_records(folder, ["model.onnx"])]})
    return folder


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(card | changes))


def test_what_is_written_is_read_back(artifact: Path) -> None:
    card = read_card(artifact)
    assert card["name"] == "dense"
    assert card["format_version"] == FORMAT_VERSION
    assert card["files"][0]["bytes"] == 7


def test_a_changed_file_is_refused(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        read_card(artifact)


def test_a_truncated_file_is_refused(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"weigh")
    with pytest.raises(ArtifactError, match="has 5 bytes, but 7 are recorded"):
        read_card(artifact)


def test_a_missing_file_is_refused(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"'model\.onnx' is missing"):
        read_card(artifact)


def test_a_newer_format_is_refused(artifact: Path) -> None:
    edit(artifact, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ArtifactError, match="upgrade"):
        read_card(artifact)


@pytest.mark.parametrize(
    "content", ['{"files": [', "[" * 100_000, "[]", "{}", '{"format_version": 1}', '{"format_version": "1"}']
)
def test_a_damaged_card_is_refused(artifact: Path, content: str) -> None:
    (artifact / "artifact.json").write_text(content)
    with pytest.raises(ArtifactError):
        read_card(artifact)


def test_an_empty_folder_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact"):
        read_card(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "{outside}", "link"])
def test_a_card_cannot_name_files_elsewhere(artifact: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (artifact / "link").symlink_to(secret)
    name = name.format(outside=secret)
    with pytest.raises(ArtifactError, match="leads out of"):
        file_records(artifact, [name])
    edit(artifact, files=[{"path": name, "bytes": 6, "sha256": "0"}])
    with pytest.raises(ArtifactError, match="leads out of"):
        read_card(artifact)


def test_no_card_is_written_for_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        write_card(tmp_path, {"files": [{"path": "model.onnx", "bytes": 1, "sha256": "0"}]})
    assert list(tmp_path.iterdir()) == []
