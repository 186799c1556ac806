"""The container file builds what the manifests run: read by a parser, by hadolint, and with slips planted."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.service_commands import serve
from tests.cluster.containerfile import faults, stages_of
from tests.cluster.manifest_schemas import FOLDER, pod_specs

ROOT = FOLDER.parents[1]
PATH = FOLDER / "Containerfile"
KNOWINGLY = {"DL3008"}
"""Of hadolint: Debian's packages are not pinned, since their old versions vanish from its mirrors."""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    command = ["git", "ls-files"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def ports() -> set[int]:
    """Those of the service, and of Ray's head by the manifests' NetworkPolicy."""
    found = {inspect.signature(serve).parameters["port"].default}
    for _, pod in pod_specs():
        found |= {port["containerPort"] for each in pod["containers"] for port in each.get("ports", [])}
    return found - {10001}  # of Ray Client, which nothing here uses


def test_it_fits_the_project(tracked: set[str], ports: set[int]):
    assert faults(PATH.read_text(), tracked, ports) == []
    _, stages = stages_of(PATH.read_text())
    assert [stage.name for stage in stages] == ["base-cpu", "base-gpu", "thresher"]


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("ARG DEVICE=cpu", "ARG DEVICE=tpu", "by default"),
        ("AS base-gpu", "AS base-cuda", "by default"),
        ("python:3.12-slim-bookworm", "python:slim", "its version is open"),
        ("python:3.12-slim-bookworm", "python:3.10-slim-bookworm", "one version is wanted"),
        ("3.12", "3.10", "is not >=3.11"),
        ("jobs ./source/jobs", "job ./source/jobs", "job is not in the repository"),
        ("pyproject.toml README.md LICENSE", "pyproject.toml README.md LICENCE", "LICENCE is not in the repository"),
        ("COPY --chown=1000:1000 cluster ./source/cluster\n", "", "'cluster'"),
        ("COPY --chown=1000:1000 jobs", "COPY --from=base-cpu jobs", "not a copy from the repository"),
        ("torch>=2.11,<2.14", "torch>=2.11,<2.15", "pyproject.toml says"),
        ("torch>=2.11,<2.14", "toch>=2.11,<2.14", "pyproject.toml says None"),
        ("--no-cache-dir ./source", "--no-cache-dir thresher", "the project is not installed"),
        ("USER 1000:1000\n", "", "root"),
        ("USER 1000:1000", "USER 0:0", "not the number"),
        ("USER 1000:1000", "USER thresher", "not the number"),
        ("USER 1000:1000", "USER 1001:1001", "files belong to"),
        ("EXPOSE 8421", "EXPOSE 8412", "[8421] are missing"),
        ("EXPOSE 8421 8265 6379", "EXPOSE 8421", "[6379, 8265] are missing"),
        ('CMD ["thresher"', 'CMD ["tresher"', "not our command"),
    ],
)
def test_a_slip_is_seen(good: str, bad: str, words: str, tracked: set[str], ports: set[int]):
    text = PATH.read_text()
    assert good in text
    found = faults(text.replace(good, bad), tracked, ports)
    assert any(words in each for each in found), found


def hadolint(text: str) -> set[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", "--format", "json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    return {each["code"] for each in json.loads(done.stdout)}


def test_hadolint_finds_nothing_more():
    # The tag of the last stage's image is that of the stage which DEVICE names.
    assert hadolint(PATH.read_text()) - KNOWINGLY == {"DL3006"}


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        ("WORKDIR /home/thresher", "WORKDIR home/thresher", "DL3000"),
        (" --no-cache-dir ./source", " ./source", "DL3042"),
        ("--yes --no-install-recommends g++", "--no-install-recommends g++", "DL3014"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "DL3009"),
        ('CMD ["thresher", "--help"]', "CMD thresher --help", "DL3025"),
        ("EXPOSE 8421", "EXPOSE 842100", "DL3011"),
        ("RUN python -m venv", "RUNS python -m venv", "DL1000"),
    ],
)
def test_hadolint_sees_a_slip(good: str, bad: str, code: str):
    assert good in PATH.read_text()
    assert code in hadolint(PATH.read_text().replace(good, bad))
