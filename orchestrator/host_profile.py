"""What a host can do, as a document that travels: `thresher hardware --json` there, `--target` here."""

import json
from pathlib import Path
from typing import Any

from jobs.errors import SpecError
from orchestrator.environment import environment

PROFILE_VERSION = 1
_ALLOWED = "a file that `thresher hardware --json` has written"


def profile(num_threads: int = 1) -> dict[str, Any]:
    """This host: processor, instruction sets, what follows from them, and throughput as measured now."""
    from jobs.measure.throughput import throughput

    found = environment()
    return {
        "profile_version": PROFILE_VERSION,
        **found["host"],
        "threads": num_threads,
        "throughput_gops": throughput(num_threads),
        "versions": found["versions"],
    }


def profile_lines(found: dict[str, Any]) -> list[str]:
    """A profile for people."""
    lines = [
        f"processor     {found['processor']}, {found['cpus']} CPUs",
        f"instructions  {' '.join(found['instructions']) or 'unknown'}",
        f"abilities     {found['abilities']}",
        f"measured      billions of operations a second, {found['threads']} thread(s), ONNX Runtime "
        f"{found['versions'].get('onnxruntime', '?')}",
    ]
    for operator, figures in found["throughput_gops"].items():
        words = ", ".join(f"{name} {'no kernel' if value is None else value}" for name, value in figures.items())
        lines.append(f"  {operator:<12}{words}")
    return lines


def target_override(path: Path) -> str:
    """The `--set` that makes a profile the job's target. Raises SpecError for a file that is no profile."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError.at("--target", f"the profile can't be read: {error.strerror}", str(path), _ALLOWED) from None
    except (ValueError, RecursionError):
        raise SpecError.at("--target", "the profile is no JSON", str(path), _ALLOWED) from None
    if not isinstance(document, dict) or not isinstance(document.get("instructions"), list):
        raise SpecError.at("--target", "the profile lists no instructions", str(path), _ALLOWED)
    version = document.get("profile_version")
    if version != PROFILE_VERSION:
        raise SpecError.at("--target", "unknown version of a profile", version, str(PROFILE_VERSION))
    target = {
        "name": str(document.get("processor") or path.stem),
        "instructions": document["instructions"],
        "cuda": document.get("cuda", False),
    }
    return f"compress.target={json.dumps(target)}"
