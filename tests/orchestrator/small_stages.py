"""Small stages of the storage, and a spec for runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.records import StageManifest
from jobs.spec import JobSpec
from orchestrator.runs import Storage

SPEC = JobSpec.parse(
    {"name": "small", "data": {"source": {"kind": "builtin", "name": "digits"}}, "model": {"name": "lenet"}}
)
Do = Callable[[Path], dict[str, Any] | None]


def perform(storage: Storage, do: Do, **config: Any) -> tuple[StageManifest | None, bool]:
    return storage.perform("train", inputs={"dataset": "d"}, config=config, code="", schema_version=1, do=do)


def writes(text: str = "weights", calls: list[Path] | None = None) -> Do:
    def do(folder: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(folder)
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "weights.bin").write_text(text)
        return {"metric": 0.5}

    return do


def done(storage: Storage, do: Do | None = None, **config: Any) -> StageManifest:
    manifest, _ = perform(storage, do or writes(), **config)
    assert manifest is not None
    return manifest


def folders(storage: Storage) -> set[str]:
    return {path.name for path in (storage.root / "stages").iterdir() if path.is_dir()}
