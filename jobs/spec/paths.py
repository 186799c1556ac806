"""Which keys of a spec name files or folders, and the same spec with such names made absolute."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_KEYS = (
    ("data", "source", "path"),
    ("data", "source", "tokenizer", "file"),
    ("model", "args", "path"),
    ("layout", "nvme_path"),
)


def named_files(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Each section that names a file, the key in it, and the key's dotted path.

    What the arguments of a user's own factory mean is not known: they are left out.

    >>> [path for _, _, path in named_files({"data": {"source": {"kind": "csv", "path": "a.csv"}}})]
    ['data.source.path']
    """
    for keys in FILE_KEYS:
        section: Any = document
        for name in keys[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(section.get(keys[-1]), str):
            continue
        if keys[0] == "model" and ":" in str(document["model"].get("name")):
            continue
        yield section, keys[-1], ".".join(keys)


def with_absolute_paths(document: dict[str, Any]) -> dict[str, Any]:
    """For a cluster that finds the files under the same absolute names; the user's modules are where it starts."""
    result = copy.deepcopy(document)
    for section, key, _ in named_files(result):
        section[key] = str(Path(section[key]).absolute())
    if "code" in result:
        result["code"]["working_dir"] = "."
    return result
