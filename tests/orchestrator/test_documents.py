"""The documents name what is there: every file in the README's tree, every key of the spec in docs/spec.md."""

import re
import subprocess
from pathlib import Path

import pytest

from jobs.section import Section
from jobs.spec.compress import (
    Budget,
    Compress,
    Distill,
    Finetune,
    LowRank,
    Pack,
    Prune,
    Quantize,
    Recover,
    Sparsify,
)
from jobs.spec.data import Data, Split
from jobs.spec.job import JobSpec
from jobs.spec.model import LenetArgs, MlpArgs, ResnetArgs
from jobs.spec.search import Search
from jobs.spec.train import Layout, Resources, Train

ROOT = Path(__file__).parents[2]


def tree() -> dict[str, str]:
    """path -> what the README says of it."""
    text = (ROOT / "README.md").read_text().split("## What is where")[1].split("```")[1]
    folders: list[str] = []
    found = {}
    for line in filter(str.strip, text.splitlines()):
        name, _, words = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        found["".join(folders)] = words.strip()
    return found


def test_every_file_stands_in_the_readmes_tree():
    listed = subprocess.run(
        ["git", "ls-files", "jobs", "cluster", "orchestrator", "benchmarks", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {path for path in listed if not path.endswith("__init__.py")}
    described = tree()
    assert {path for path in expected if path not in described} == set()
    assert {path for path in described if not path.endswith("/") and path not in expected} == set()
    assert [path for path, words in described.items() if not words] == []


SECTIONS: list[type[Section]] = [JobSpec, Data, Split, Train, Layout, Resources, Search, Compress, Prune, Recover]
SECTIONS += [LowRank, Distill, Quantize, Pack, Sparsify, Finetune, Budget, LenetArgs, MlpArgs, ResnetArgs]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_stands_in_the_specs_document(section: type[Section]):
    words = set(re.findall(r"[a-z_0-9]+", (ROOT / "docs" / "spec.md").read_text()))
    later = {"tensor", "pipeline", "offload"}  # refused: not supported yet
    assert {field.alias or name for name, field in section.model_fields.items()} - later - words == set()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str):
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
