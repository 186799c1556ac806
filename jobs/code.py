"""The user's own modules: which files they are, their digest, and a copy of them that can travel.

What is digested is what travels: every Python file below the working directory, except in hidden folders and in
virtual environments.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import SpecError
from jobs.hashing import digest_file, digest_json


def module_files(folder: Path) -> list[Path]:
    """The files, relative to the folder, in a fixed order. Raises SpecError if there is no such folder."""
    if not folder.is_dir():
        raise SpecError.at("code.working_dir", "no such folder", str(folder))
    return sorted(path.relative_to(folder) for path in _walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        place = Path(root)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and not (place / name / "pyvenv.cfg").exists()
        ]
        yield from (place / name for name in files if name.endswith(".py"))


def digest_modules(folder: Path) -> str:
    """The SHA-256 (hex) over the names and contents of the modules."""
    return digest_json([[path.as_posix(), digest_file(folder / path)] for path in module_files(folder)])


def copy_modules(folder: Path, target: Path) -> None:
    """Copies the modules, with their folders."""
    for path in module_files(folder):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, target / path)
