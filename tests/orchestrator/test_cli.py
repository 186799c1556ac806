"""The command line, in this process: what it prints, in which form, and how it ends."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from jobs.errors import ClusterUnreachable, Interrupted, JobFailed, ThresherError
from jobs.records import JobPlan
from jobs.spec import JobSpec
from orchestrator import cli, driver
from orchestrator.runs import Storage
from tests.jobs.compress.small_packs import small_files, small_pack

DIGITS: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}
COMMANDS = ("plan", "run", "resume", "report", "verify", "predict", "unpack", "clean", "schema", "submit")
COMMANDS += ("status", "logs", "cancel", "data")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Thresher = Callable[..., Ended]


@pytest.fixture
def thresher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """thresher("plan", spec, …) in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> Ended:
        monkeypatch.setattr(sys, "argv", ["thresher", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(DIGITS))
    return path


class TestHelp:
    def test_it_names_every_command(self, thresher: Thresher) -> None:
        ended = thresher("--help")
        assert ended.code == 0
        for command in COMMANDS:
            assert f" {command} " in ended.out

    @pytest.mark.parametrize("command", [*COMMANDS, "data get", "data info"])
    def test_each_command_has_its_own(self, command: str, thresher: Thresher) -> None:
        ended = thresher(*command.split(), "--help")
        assert ended.code == 0
        assert f"thresher {command} " in ended.out
        assert len(ended.out.split("\n")[3].split()) > 3  # says what it does

    def test_no_arguments_are_answered_with_it(self, thresher: Thresher) -> None:
        ended = thresher()
        assert ended.code == 2
        assert "predict" in ended.out + ended.err


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["trian"], "trian"),
            (["plan"], "SPEC"),
            (["plan", "a.yaml", "b.yaml"], "b.yaml"),
            (["plan", "a.yaml", "--jsn"], "--jsn"),
            (["predict", "folder"], "--data"),
            (["data"], "get"),
            (["data", "gte"], "gte"),
            (["cancel"], "JOB"),
        ],
    )
    def test_the_code_is_2(self, arguments: list[str], message: str, thresher: Thresher) -> None:
        ended = thresher(*arguments)
        assert ended.code == 2
        assert message in (ended.err + ended.out)

    def test_also_as_json(self, thresher: Thresher) -> None:
        ended = thresher("plan", "a.yaml", "--json", "--foo")
        assert ended.code == 2
        assert ended.document["error"] == "UsageError"
        assert "--foo" in ended.document["problems"][0]

    @pytest.mark.parametrize("command", ["plan", "run", "data info", "submit --ray http://127.0.0.1:1"])
    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_spec_that_is_not_there(self, command: str, as_json: bool, thresher: Thresher, spec: Path) -> None:
        missing = spec.with_name("spec.yaml")
        ended = thresher(*command.split(), missing, *["--json"] * as_json)
        assert ended.code == 2
        assert ended.err == f"error: no such file: {missing}\n"
        if as_json:
            assert ended.document == {"error": "SpecError", "problems": [f"no such file: {missing}"]}
        else:
            assert ended.out == ""
        assert not Path("runs").exists()

    def test_all_problems_are_listed(self, thresher: Thresher, spec: Path) -> None:
        overrides = ["--set", "train.epochs=0", "--set", "metric=acuracy"]
        ended = thresher("run", spec, *overrides, "--json")
        assert ended.code == 2
        assert len(ended.document["problems"]) == 2
        assert "did you mean 'accuracy'?" in ended.err


class TestMissingThings:
    @pytest.mark.parametrize(
        ("arguments", "code", "error", "message"),
        [
            (["report", "nothing"], 2, "SpecError", "no run 'nothing'"),
            (["report", "../../etc"], 2, "SpecError", "no run"),
            (["resume", "nothing"], 2, "SpecError", "no run 'nothing'"),
            (["verify", "nothing"], 2, "SpecError", "no such folder"),
            (["verify", "."], 2, "SpecError", "holds no artifact"),
            (["predict", "nothing", "--data", "x.csv"], 2, "SpecError", "no such folder"),
            (["predict", ".", "--data", "x.csv"], 2, "SpecError", "as it is, not unpacked"),
            (["unpack", "nothing"], 2, "SpecError", "no such file"),
            (["unpack", "."], 2, "SpecError", "holds no model.thpack"),
            (["status", "job"], 2, "SpecError", "--ray"),
            (["cancel", "job"], 2, "SpecError", "--ray"),
            (["plan", "spec", "--runs", "s3://bucket/runs"], 2, "SpecError", "no such file"),
            (["clean", "--runs", "s3://bucket/runs"], 2, "SpecError", "not supported yet"),
            (["data", "get", "fashion-mnits"], 2, "DataError", "fashion-mnist"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_errors_as_text_and_as_json(
        self, arguments: list[str], code: int, error: str, message: str, thresher: Thresher
    ) -> None:
        text, document = thresher(*arguments), thresher(*arguments, "--json")
        assert text.code == document.code == code
        assert text.out == ""
        assert text.err.startswith("error: ")
        assert message in text.err
        assert document.document["error"] == error
        assert message in document.document["problems"][0]
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize("command", ["plan", "run"])
    def test_a_storage_that_is_no_folder(self, command: str, thresher: Thresher, spec: Path) -> None:
        for place in (spec, spec / "below"):
            ended = thresher(command, spec, "--runs", place)
            assert ended.code == 2
            assert ended.err.startswith(f"error: --runs: {spec} is no folder")

    def test_a_run_without_a_report(self, thresher: Thresher) -> None:
        run = Storage(Path("runs")).create_run(JobSpec.parse(DIGITS))
        ended = thresher("report", run.id, "--json")
        assert ended.code != 0
        assert ended.document["problems"]
        misspelt = thresher("report", run.id[:-1])
        assert f"did you mean '{run.id}'?" in misspelt.err


class TestAnswers:
    def test_schema(self, thresher: Thresher) -> None:
        ended = thresher("schema")
        assert ended.code == 0
        jsonschema.validate(DIGITS, ended.document)

    def test_plan(self, thresher: Thresher, spec: Path) -> None:
        ended = thresher("plan", spec, "--set", "train.batch_size=64")
        assert ended.code == 0
        assert ended.err == ""
        assert "22 of 64 samples" not in ended.out
        assert "224 of 64 samples" in ended.out
        assert not Path("runs").exists()

    def test_plan_as_json(self, thresher: Thresher, spec: Path) -> None:
        plan = JobPlan.from_json(thresher("plan", spec, "--json", "--set", "train.steps=5").document)
        assert plan.total_steps == 5

    def test_data_info(self, thresher: Thresher, spec: Path) -> None:
        text = thresher("data", "info", spec).out
        assert "sample       1 × 8 × 8 (image)" in text
        assert "10 classes" in text
        document = thresher("data", "info", spec, "--json").document
        assert document["num_samples"] == {"train": 1437, "validation": 180, "test": 180}
        assert document["fingerprint"] in text

    def test_unpack(self, thresher: Thresher, tmp_path: Path) -> None:
        artifact = tmp_path / "packed"
        artifact.mkdir()
        (artifact / "model.thpack").write_bytes(small_pack())
        files = small_files()
        for arguments in ((artifact,), (artifact / "model.thpack", "--out", tmp_path / "there")):
            document = thresher("unpack", *arguments, "--json").document
            folder = Path(document["path"])
            assert folder == (tmp_path / "there" if len(arguments) > 1 else artifact / "model")
            assert {record["path"]: record["sha256"] for record in document["files"]} == {
                name: hashlib.sha256(content).hexdigest() for name, content in files.items()
            }
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        assert thresher("unpack", artifact).out.splitlines()[-1] == str(artifact / "model")

    def test_a_damaged_pack(self, thresher: Thresher, tmp_path: Path) -> None:
        for name, content in (("cut", small_pack()[:-1]), ("other", b"no pack at all")):
            (tmp_path / name).write_bytes(content)
            ended = thresher("unpack", tmp_path / name, "--out", tmp_path / "out")
            assert ended.code == 1
            assert f"error: {tmp_path / name}" in ended.err
        assert not (tmp_path / "out").exists()

    def test_a_pack_is_not_unpacked_into_a_file(self, thresher: Thresher, tmp_path: Path) -> None:
        pack = tmp_path / "pack"  # its folder would have its own name
        pack.write_bytes(small_pack())
        for arguments in ((pack,), (pack, "--out", pack), (pack, "--out", pack / "below")):
            ended = thresher("unpack", *arguments)
            assert ended.code == 2
            assert ended.err.startswith("error: --out: ")
        assert pack.read_bytes() == small_pack()

    def test_clean(self, thresher: Thresher) -> None:
        lost = Path("runs/stages/0123abcd")
        lost.mkdir(parents=True)
        (lost / "model.bin").write_bytes(b"x" * 1000)
        dry = thresher("clean", "--dry-run")
        assert f"would remove {lost.absolute()}" in dry.out
        assert "would remove 1 folders, 1.00 KB" in dry.out
        assert lost.exists()
        document = thresher("clean", "--json").document
        assert document == {"removed": [str(lost.absolute())], "bytes": 1000, "dry_run": False}
        assert not lost.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailed("out of luck"), 1),
        (ClusterUnreachable("nobody at ray://x"), 3),
        (Interrupted("stopped; go on with: thresher resume x"), 130),
    ],
    ids=["failed", "unreachable", "interrupted"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_how_a_run_ends_is_its_code(
    error: ThresherError, code: int, as_json: bool, thresher: Thresher, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, listeners: Any, **__: Any) -> None:
        listeners[0]({"t": 0.0, "event": "started", "run_id": "small-1", "run_dir": "/runs/small-1", "name": "small"})
        raise error

    monkeypatch.setattr(driver, "run", run)
    ended = thresher("run", spec, *["--json"] * as_json)
    assert ended.code == code
    assert str(error) in ended.err
    if as_json:
        # Where it stands is said too, so that it can be resumed.
        assert ended.document == {
            "run_dir": "/runs/small-1",
            "error": type(error).__name__,
            "problems": [str(error)],
        }
    else:
        assert ended.out == ""


def test_an_interruption_by_the_keyboard(thresher: Thresher, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.planning.plan.plan_job", interrupt)
    assert thresher("plan", spec).code == 130
