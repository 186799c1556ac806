"""The command line ends with 2 for what is refused, and leaves no run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator import cli
from tests.jobs.refusals.refused import spec_with
from tests.jobs.refusals.test_data import DATA
from tests.jobs.refusals.test_plans import PLANS
from tests.jobs.refusals.test_spec_files import FILES
from tests.jobs.refusals.test_specs import SPECS


def broken(name: str) -> Callable[[Path], Path]:
    """A spec file with a case from the tables above."""

    def make(folder: Path) -> Path:
        if name in FILES:
            content = FILES[name][0]
            text = content if isinstance(content, bytes) else content.encode()
        else:
            table = {**SPECS, **PLANS}
            values = table[name][0] if name in table else DATA[name][0](folder / "source")
            text = yaml.safe_dump(spec_with(values)).encode()
        (folder / "spec.yaml").write_bytes(text)
        return folder / "spec.yaml"

    return make


COMMANDS = (
    "true for a number",
    "unknown at the top",
    "not a number",
    "illegal in between",
    "a pipeline and ZeRO 2",
    "a tensor degree that divides no width",
    "a batch that workers can't divide",
    "a crop as wide as the image",
    "a key twice",
    "a billion laughs",
    "a Python object",
    "too deep",
    "nothing",
    "a misspelt target",
    "objects for targets",
    "one class",
    "text that is not UTF-8",
    "empty space",
    "a value that the parent never takes",
    "an argument that is not there",
    "an objective of files that no phase makes",
    "pbt over the batch",
)
READING_ALONE = ("a truncated gzip", "a truncated image")
"""What a plan cannot see."""


@pytest.mark.parametrize(
    ("command", "case"),
    [*(("plan", case) for case in COMMANDS), *(("run", case) for case in (*COMMANDS, *READING_ALONE))],
)
def test_the_command_line_ends_with_2_and_leaves_no_run(
    command: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = broken(case)(tmp_path)
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["thresher", command, str(spec), "--runs", str(runs), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert json.loads(said.out)["problems"]
    assert not list(runs.glob("*/spec.yaml"))
