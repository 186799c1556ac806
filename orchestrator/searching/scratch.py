"""Folders of Tune's own: noted while it runs and removed when it has ended, by whichever process that is."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

_STAGING = "staging"
"""File in Tune's folder: where else it writes, below Ray's folder for the session. No setting moves that."""
_RAYS = "artifacts"
"""Ray's name for it: nothing outside is ever removed."""


class Staging(tune.Callback):
    """Notes where Tune writes beside the folder `scratch`, which it was given."""

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.noted, self.known = scratch / _STAGING, set[Path]()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = Path(trial.local_experiment_path).parent
        if folder not in self.known:
            self.known.add(folder)
            with self.noted.open("a") as file:
                file.write(f"{folder}\n")


def remove_scratch(scratch: Path) -> None:
    """Removes Tune's folders: also those of an earlier process, which was killed."""
    noted = scratch / _STAGING
    for line in noted.read_text().splitlines() if noted.exists() else ():
        folder = Path(line)
        if folder.parent.parent.name == _RAYS:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # it is not empty
                folder.parent.rmdir()
    shutil.rmtree(scratch, ignore_errors=True)
