"""The two files of a study: `study.log`, Optuna's journal, and `trials.jsonl`, the whole record of each finished trial.

The journal is flushed to the device, then a finished trial is written to `trials.jsonl`, then Optuna is told: what is
found in one and not yet in the other is told when the study is opened again.
"""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jobs.errors import JobFailed
from jobs.records import Trial
from jobs.spec.search import Phase
from jobs.spec.space import Space
from jobs.storage import fsync
from orchestrator.runs import read_lines
from orchestrator.searching.study.space import from_params

JOURNAL, RECORDS = "study.log", "trials.jsonl"
VIOLATION = "budget"
"""The name of the constraint."""
STATES = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Journal(JournalFileBackend):
    """Optuna's journal file, neither locked nor flushed to the device with each entry, of which a trial makes a dozen.

    A single write goes to the end of the file whole, also beside another process (a dashboard that adds trials by
    hand). What must outlive the machine is flushed by `flush_journal`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        entries = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        with self._path.open("ab", buffering=0) as file:
            while entries:
                # A disk that fills up takes a part, and says so at the next write only.
                entries = entries[file.write(entries) :]


def flush_journal(folder: Path) -> None:
    """Has the journal on disk: before anything else there refers to a trial of it."""
    fsync(folder / JOURNAL)


def open_journal(folder: Path) -> JournalStorage:
    """Optuna's storage in a folder that this process alone writes to.

    The journal is lines of JSON: nothing in it is unpickled. A process that was killed may have left a line half
    written, and Optuna's own lock, for which the next one would wait half a minute.

    Raises:
        JobFailed: the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    if path.exists():
        _cut_off_half_a_line(path)
    try:
        return JournalStorage(Journal(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        # What Optuna raises for lines that are no JSON, or no entries of a journal.
        raise JobFailed(
            f"the search's journal {path} is damaged ({type(error).__name__}: {error}); "
            f"remove {folder} to begin the search anew"
        ) from error


def _cut_off_half_a_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(max(0, size - (1 << 20)))
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def append_record(folder: Path, trial: Trial) -> None:
    """Appends a finished trial; it survives the driver, and a last line that an earlier one left half written."""
    append_line(folder / RECORDS, trial.to_json())


def append_line(path: Path, document: dict[str, Any]) -> None:
    """Appends a line of JSON to a file that this process alone writes to, and has it on disk."""
    if path.exists():
        _cut_off_half_a_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(document) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> dict[int, Trial]:
    """number -> finished trial."""
    return {trial.number: trial for trial in map(Trial.from_json, read_lines(folder / RECORDS))}


def record_of(frozen: FrozenTrial, phase: Phase, space: Space, objectives: list[str]) -> Trial:
    """What Optuna knows of a finished trial, where its own record was lost with the machine's last writes."""
    curve = tuple(value for _, value in sorted(frozen.intermediate_values.items()))
    return Trial(
        number=frozen.number,
        phase=phase,
        params=from_params(frozen.params, space),
        state=STATES[frozen.state],
        cause=frozen.user_attrs.get("cause", ""),
        values=dict(zip(objectives, frozen.values, strict=True)) if frozen.state == TrialState.COMPLETE else {},
        violation=frozen.constraints.get(VIOLATION, 0.0),
        curve=curve,
        seconds=frozen.duration.total_seconds() if frozen.duration else 0.0,
        epochs=len(curve),
    )
