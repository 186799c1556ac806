"""Where things stand on disk: the run's own folder, and the stages that runs share.

    <storage>/<run_id>/                spec.yaml, plan.json, events.jsonl, metrics.jsonl, trials.parquet, stages/,
                                       artifacts/<name>/ (artifact.json, card.md, model files), report.json, report.html
    <storage>/stages/<hash>/           a complete stage: its files, and manifest.json, written last
    <storage>/stages/<hash>.partial/   one at work, or broken off: the next attempt goes on from what is there
    <storage>/datasets/<fingerprint>/  prepared data

A stage is written below `.partial`, its manifest last, then the folder is renamed: what has its final name is whole.
"""

import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from jobs.errors import SpecError, StorageError
from jobs.hashing import digest_file, digest_json
from jobs.records import FileRecord, StageManifest
from jobs.spec import JobSpec
from jobs.storage import flush_below, fsync, read_json, storage_errors, write_json, write_text

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}$")
RESERVED = ("stages", "datasets")
CLAIM_TIMEOUT_S = 24 * 3600.0
ATTEMPT_VARIABLE = "THRESHER_ATTEMPT"
"""In the environment of a driver that the service started: its submission id, which the event `started` repeats."""

_VERSIONS = (
    "thresher",
    "torch",
    "deepspeed",
    "ray",
    "onnx",
    "onnxruntime",
    "torch-pruning",
    "optuna",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of the libraries that results may depend on; recorded, and no part of a stage's hash."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _VERSIONS}


def stage_hash(stage: str, *, inputs: dict[str, str], config: dict[str, Any], code: str, schema_version: int) -> str:
    """The address of a stage's result: what went in, what was asked, whose code, in which format."""
    document = {"stage": stage, "inputs": inputs, "config": config, "code": code, "schema": schema_version}
    return digest_json(document)[:32]


class Storage:
    """The folder that runs, stages and data sets live in."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @classmethod
    def at(cls, place: str | Path) -> "Storage":
        """A local folder. Raises SpecError for addresses of object stores."""
        if "://" in str(place):
            raise SpecError.at("--runs", "not supported yet: storage on an object store", str(place), "a folder")
        root = Path(place).absolute()
        there = next(folder for folder in (root, *root.parents) if os.path.lexists(folder))
        if not os.path.isdir(there):
            raise SpecError.at("--runs", f"{there} is no folder", str(place), "a folder, or a name for a new one")
        return cls(root)

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    def stage(self, digest: str) -> Path:
        return self.root / "stages" / digest

    def manifest(self, digest: str) -> StageManifest | None:
        """The manifest of a complete stage whose files are all there, or None."""
        folder = self.stage(digest)
        try:
            manifest = StageManifest.from_json(read_json(folder / MANIFEST))
            if all((folder / file.path).stat().st_size == file.bytes for file in manifest.files):
                return manifest
            logger.warning("stage %s in %s has files of another size and runs again", manifest.stage, folder)
        except FileNotFoundError as error:
            if folder.exists():
                logger.warning("stage %s is not whole (%s) and runs again", folder, error)
        except (OSError, ValueError) as error:
            logger.warning("stage %s has a damaged manifest (%s) and runs again", folder, error)
        return None

    @contextmanager
    def claim(self, digest: str, timeout_s: float = CLAIM_TIMEOUT_S) -> Iterator[None]:
        """Holds a stage alone; the claim ends with the process, however that ends. Raises StorageError."""
        path = self.root / "stages" / f".{digest}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            deadline = time.monotonic() + timeout_s
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise StorageError(f"another process has held the stage {digest} for {timeout_s:.0f} s")
                time.sleep(0.2)
            yield

    def perform(
        self,
        stage: str,
        *,
        inputs: dict[str, str],
        config: dict[str, Any],
        code: str,
        schema_version: int,
        do: Callable[[Path], dict[str, Any] | None],
    ) -> tuple[StageManifest | None, bool]:
        """The stage's manifest, and whether it was there already.

        `do` writes files below the folder it is given and returns the stage's result; None means that it stopped
        early, and then nothing is committed and the next attempt goes on from what it left.
        """
        digest = stage_hash(stage, inputs=inputs, config=config, code=code, schema_version=schema_version)
        if manifest := self.manifest(digest):
            return manifest, True
        with self.claim(digest):
            if manifest := self.manifest(digest):
                return manifest, True
            partial = self.stage(digest).with_suffix(".partial")
            with storage_errors(partial):
                shutil.rmtree(self.stage(digest), ignore_errors=True)  # damaged, or manifest() had found it
                partial.mkdir(parents=True, exist_ok=True)
                started = time.monotonic()
                result = do(partial)
                if result is None:
                    return None, False
                shutil.rmtree(partial / "checkpoints", ignore_errors=True)
                manifest = StageManifest(
                    stage=stage,
                    hash=digest,
                    schema_version=schema_version,
                    inputs=inputs,
                    config=config,
                    files=_files_below(partial),
                    result=result,
                    seconds=time.monotonic() - started,
                    versions=versions(),
                    finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
                )
                # The rename is last of all, and what it makes visible is on the device by then, the manifest too.
                write_json(partial / MANIFEST, manifest.to_json(), durable=False)
                flush_below(partial)
                partial.rename(self.stage(digest))
                fsync(self.stage(digest).parent)
        return manifest, False

    def create_run(self, spec: JobSpec, run_id: str | None = None) -> "Run":
        """A new run directory, holding the spec. Raises SpecError for an id that is none, or is taken."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self.root / (run_id or f"{spec.name}-{stamp}-{secrets.token_hex(3)}")
        if run_id is not None and (not RUN_ID.fullmatch(run_id) or run_id in RESERVED):
            raise SpecError.at("--run-id", "no id of a run", run_id, "letters, digits, '.', '_' and '-'")
        if (folder / "spec.yaml").exists():
            raise SpecError.at("--run-id", "there is such a run already", run_id, "a new id, or thresher resume")
        with storage_errors(folder):
            try:
                # One without a spec was being made when its maker died.
                folder.mkdir(parents=True, exist_ok=run_id is not None)
            except PermissionError as error:
                raise SpecError.at("--runs", f"may not be written to: {error.strerror}", str(self.root)) from error
            write_text(folder / "spec.yaml", yaml.safe_dump(spec.document(), sort_keys=False, allow_unicode=True))
        return Run(folder)

    def find_run(self, name: str) -> "Run":
        """A run by directory or by id. Raises SpecError with the nearest id."""
        import difflib

        # os.path: names that no file system takes are simply not there.
        if os.path.isfile(Path(name) / "spec.yaml"):
            return Run(Path(name).absolute())
        if RUN_ID.fullmatch(name) and os.path.isfile(self.root / name / "spec.yaml"):
            return Run(self.root / name)
        near = difflib.get_close_matches(name, self.run_ids(), n=1, cutoff=0.3)
        raise SpecError.at("RUN", f"no run {name!r} below {self.root}", nearest=near[0] if near else None)

    def run_ids(self) -> list[str]:
        """The runs in this storage, oldest first."""
        folders = [p.parent for p in self.root.glob("*/spec.yaml") if p.parent.name not in RESERVED]
        return [folder.name for folder in sorted(folders, key=lambda f: f.stat().st_mtime)]

    def clean(self, *, dry_run: bool) -> tuple[list[Path], int]:
        """Removes stages and data sets that no run refers to; returns them and their bytes.

        What a living process works on is claimed and stays. So does everything made since the oldest run without a
        report began: its search may refer to it once it goes on.
        """
        used: set[str] = set()
        unfinished_since = math.inf
        for run_id in self.run_ids():
            run = Run(self.root / run_id)
            used |= run.references()
            if not (run.folder / "report.json").exists():
                unfinished_since = min(unfinished_since, (run.folder / "spec.yaml").stat().st_mtime)
        victims: list[Path] = []
        size = 0
        # Locks as claim() and data.prepare() take them.
        stages = [(path, f".{path.stem}.lock") for path in (self.root / "stages").glob("[0-9a-f]*")]
        datasets = [(path, f"{path.name}.lock") for path in self.datasets.glob("[0-9a-f]*")]
        for path, lock_name in [*stages, *datasets]:
            if path.stem in used or not path.is_dir() or path.stat().st_mtime >= unfinished_since:
                continue
            with (path.parent / lock_name).open("a") as lock:
                if not _try_lock(lock):
                    continue
                victims.append(path)
                size += sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
                if not dry_run:
                    # The manifest goes first: a clean broken off half way leaves nothing that looks whole.
                    (path / MANIFEST).unlink(missing_ok=True)
                    (path / "dataset.json").unlink(missing_ok=True)
                    shutil.rmtree(path)
        return victims, size


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files_below(folder: Path) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(path=str(p.relative_to(folder)), bytes=p.stat().st_size, sha256=digest_file(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    )


class Run:
    """One execution in one directory. Events and metrics are appended; everything else is written whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def spec(self) -> JobSpec:
        return JobSpec.load(self.folder / "spec.yaml")

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Makes this process the run's only driver. Raises SpecError naming the one that lives."""
        path = self.folder / ".driver"
        with path.open("a+") as lock:
            if not _try_lock(lock):
                lock.seek(0)
                raise SpecError.at("RUN", f"{self.id} is driven by process {lock.read().strip() or '?'}, which lives")
            lock.seek(0)
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def event(self, event: str, **fields: Any) -> None:
        """Appends to events.jsonl and tells the listeners."""
        record = {"t": time.time(), "event": event, **fields}
        self._append("events.jsonl", record)
        for listener in self.listeners:
            listener(record)

    def metric(self, **fields: Any) -> None:
        """Appends a measurement to metrics.jsonl: {t, stage, trial, epoch, step, split, loss, metric, lr}."""
        self._append("metrics.jsonl", {"t": time.time(), **fields})

    def log(self, report: dict[str, Any]) -> None:
        """Books what work reports: all of it as events, its figures as metrics too."""
        if report["event"] in ("step", "epoch", "trial_epoch"):
            figures = {key: report.get(key) for key in ("epoch", "step", "split", "loss", "metric", "lr")}
            self.metric(stage=report.get("label", report.get("phase")), trial=report.get("trial"), **figures)
        self.event(**report)

    def stage_done(self, name: str, manifest: StageManifest, reused: bool) -> None:
        """Books a complete stage, and that this run refers to it."""
        self.refer(name, manifest, reused=reused)
        held_up = manifest.result.get("checkpoint_s", 0.0)
        self.event(
            "stage",
            stage=name,
            stage_hash=manifest.hash,
            reused=reused,
            seconds=manifest.seconds,
            checkpoint_s=held_up,
        )

    def _append(self, name: str, record: dict[str, Any]) -> None:
        line = (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode()
        path = self.folder / name
        with storage_errors(path), path.open("ab+", buffering=0) as file:
            if (end := file.tell()) and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = b"\n" + line  # a crash cut the last line off; this one must not go down with it
            while line:
                # A disk that fills up takes a part, and says so at the next write only.
                line = line[file.write(line) :]

    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "events.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    def refer(self, name: str, manifest: StageManifest, *, reused: bool) -> None:
        """Notes that this run uses a stage, so that `thresher clean` keeps it."""
        path = self.folder / "stages" / name / MANIFEST
        if reused and path.exists() and read_json(path)["hash"] == manifest.hash:
            return  # this run made it, before it was resumed
        write_json(path, manifest.to_json() | {"reused": reused})

    def references(self) -> set[str]:
        """Hashes of the stages and fingerprints of the data sets that this run refers to. Raises StorageError."""
        manifests = list((self.folder / "stages").rglob(MANIFEST))
        plan = self.folder / "plan.json"
        try:
            found = {read_json(path)["hash"] for path in manifests}
            # What was planned may be at work, or broken off with something to go on from.
            found |= set(read_json(plan)["hashes"].values()) if plan.exists() else set()
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{self.folder} has damaged files, so what it refers to is not known: {error}"
            ) from error
        for event in self.events():
            found |= {event[key] for key in ("dataset", "stage_hash") if key in event}
        return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that a crash cut off is passed over."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    # Bytes: the cut may go through a character, and a text may hold what str takes for a line's end.
    for line in path.read_bytes().split(b"\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
