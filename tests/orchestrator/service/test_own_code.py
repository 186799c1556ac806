"""Models of users: what is refused without running any of their code, and what the job says of the rest."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import SpecError
from jobs.spec import JobSpec
from orchestrator import cli
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage, read_lines
from tests.orchestrator.service.conftest import DIGITS, World

TRAP = "open({trap!r}, 'w').close()\n"
GOOD = "def net(input_shape, outputs): ...\n"


def send(world: World, text: str, **changes: Any) -> Any:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        entry = tarfile.TarInfo("mine.py")
        entry.size = len(text.encode())
        archive.addfile(entry, io.BytesIO(text.encode()))
    digest = hashlib.sha256(body.getvalue()).hexdigest()
    assert world.admin("PUT", f"/code/{digest}", content=body.getvalue()).status_code == 201
    return world.admin("POST", f"/jobs?code={digest}", json=DIGITS | {"model": {"name": "mine:net"}} | changes)


@pytest.mark.parametrize(
    ("text", "changes", "path", "words"),
    [
        ("def net(:\n", {}, "model.name", "mine:net failed: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("def other(): ...\n", {}, "model.name", "mine has no function net"),
        (GOOD, {"train": {"batch_size": 1 << 20}}, "train.batch_size", "hold no whole batch"),
        (
            GOOD,
            {"resources": {"workers": 2}, "layout": {"data": 2}, "train": {"batch_size": 33}},
            "train.batch_size",
            "does not divide over 2",
        ),
    ],
    ids=["syntax", "no such function", "batch", "layout"],
)
def test_what_can_be_seen_without_running_it(
    text: str, changes: dict[str, Any], path: str, words: str, world: World, tmp_path: Path
) -> None:
    trap = tmp_path / "was run"
    answer = send(world, text + TRAP.format(trap=str(trap)), **changes)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["problems"]
    assert problem["path"] == path
    assert words in problem["message"]
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "import torch\nraise RuntimeError\n" + GOOD,
        "from elsewhere import *\n",
        "globals()['n' + 'et'] = print\n",
        "if True:\n    from elsewhere import builder as net\n",
        "net = lambda **_: 1\n",
        "-" * 100_000 + "1\n",
    ],
    ids=["good", "fails", "star", "dynamic", "import", "lambda", "deep"],
)
def test_what_only_running_it_could_tell_is_taken(text: str, world: World, tmp_path: Path) -> None:
    trap = tmp_path / "was run"
    assert send(world, text + TRAP.format(trap=str(trap))).status_code == 201
    assert not trap.exists()


def test_the_job_then_says_what_plan_says_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its event is what makes the job FAILED with cause `refused`, without another try: see test_controller.py."""
    (tmp_path / "mine.py").write_text("def net(input_shape, outputs):\n    return 'no module'\n")
    document = DIGITS | {"model": {"name": "mine:net"}, "code": {"working_dir": str(tmp_path)}}
    with pytest.raises(SpecError) as refused:
        plan_job(JobSpec.parse(document), Storage(tmp_path / "planned"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["thresher", "run", "spec.yaml", "--run-id", "job-1", "--runs", "runs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2, capsys.readouterr()
    last = read_lines(tmp_path / "runs" / "job-1" / "events.jsonl")[-1]
    assert (last["event"], last["error"]) == ("failed", "SpecError")
    assert last["message"] == str(refused.value)
    assert "returned a str, not a torch.nn.Module" in json.dumps(last)
