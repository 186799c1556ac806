"""A service in a process of its own, on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.store import Store

ROOT = Path(__file__).parents[2]


@dataclass
class Served:
    """A running `thresher serve`, and its store, which a test may write to as a controller would."""

    process: subprocess.Popen[str]
    url: str
    token: str
    runs: Path
    store: Store
    log: Path


def start(
    runs: Path, log: Path, port: int = 0, *options: str, env: Mapping[str, str] = os.environ, api_only: bool = True
) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The process, and what it said once it could be reached."""
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "--json", "--runs", str(runs)]
    command += ["--api-only"] if api_only else []
    with log.open("a") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**env, "PYTHONPATH": str(ROOT)},
        )
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, log.read_text()
        text += line
    return process, json.loads(text)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    process, said = start(folder / "runs", folder / "serve.log")
    try:
        with Store.open(said["store"]) as store:
            yield Served(process, said["url"], said["token"], folder / "runs", store, folder / "serve.log")
    finally:
        process.terminate()
        process.wait(30)
