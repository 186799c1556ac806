"""Searches through real Ray: early stopping, planted faults, and that nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.errors import SpecError
from jobs.records import RunReport
from jobs.storage import read_json
from orchestrator import JobSpec, run
from orchestrator.runs import read_lines
from tests.ray.sweep import DIGITS, events, killing, remains, wait_for, workers_of

pytestmark = pytest.mark.usefixtures("local_ray")

THRESHER = [sys.executable, "-m", "orchestrator.cli"]
TIMEOUT_S = 120


def searched(runs: Path, values: dict[str, Any]) -> RunReport:
    return run(JobSpec.parse(DIGITS).replace(values), runs=runs)


def trials_of(report: RunReport) -> list[dict[str, Any]]:
    assert report.search is not None
    return list(report.search["trials"])


def check_each_booked_once(storage: Path, report: RunReport, count: int) -> None:
    trials = trials_of(report)
    numbers = {trial["number"] for trial in trials}
    assert len(numbers) == len(trials) == count  # a number is left out where a search broke off over its values
    booked = Counter(event["number"] for event in events(storage) if event["event"] == "trial")
    assert booked == dict.fromkeys(numbers, 1)
    (folder,) = (path.parent for path in (storage / "stages").glob("*/trials.jsonl"))
    assert Counter(record["number"] for record in read_lines(folder / "trials.jsonl")) == booked


@pytest.mark.parametrize("scheduler", ["hyperband", pytest.param("median", marks=pytest.mark.slow)])
def test_a_scheduler_stops_trials_and_leaves_nothing_of_them(tmp_path: Path, scheduler: str):
    report = searched(
        tmp_path,
        {
            "search.scheduler": scheduler,
            "search.concurrency": 1,
            "search.algorithm": "grid",
            # Good ones first: what follows is compared with them. The last three learn nothing.
            "search.space": {"train.optimizer.lr": {"choice": [5e-3, 1e-2, 2e-2, 3e-2, 1e-6, 2e-6, 3e-6]}},
            "train.epochs": 6,
        },
    )
    trials = trials_of(report)
    stopped = [trial for trial in trials if trial["state"] == "pruned"]
    completed = [trial for trial in trials if trial["state"] == "completed"]
    assert len(stopped) + len(completed) == 7
    assert {trial["number"] for trial in stopped} & {4, 5, 6}
    assert all(0 < trial["epochs"] < 6 for trial in stopped)
    assert all(trial["epochs"] == 6 for trial in completed)
    assert remains(tmp_path) == []
    # What won was trained with the whole budget, and is not trained again.
    (train,) = (stage for stage in report.stages if stage["name"] == "train")
    assert train["reused"]
    best = max(completed, key=lambda trial: trial["values"]["metric"])
    manifest = read_json(tmp_path / "stages" / train["hash"] / "manifest.json")
    assert manifest["config"]["train"]["optimizer"]["lr"] == best["params"]["train.optimizer.lr"]
    assert manifest["result"]["steps"] == best["steps"] == max(trial["steps"] for trial in trials)


def test_trials_survive_the_death_of_workers(tmp_path: Path):
    with killing(os.getpid(), "Member", times=4, apart_s=(0.5, 1.5)) as kills:
        report = searched(tmp_path, {"search.trials": 20, "train.epochs": 24, "retry.max_failures": 6})
    assert len(kills) == 4
    check_each_booked_once(tmp_path, report, 20)
    trials = trials_of(report)
    assert {trial["state"] for trial in trials} == {"completed"}, [trial["cause"] for trial in trials]
    assert {len(trial["curve"]) for trial in trials} == {24}
    assert remains(tmp_path) == []


def test_a_trial_whose_actor_died_goes_on_from_its_checkpoints(tmp_path: Path):
    killed = list[int]()

    def strike() -> None:
        wait_for(lambda: [e for e in events(tmp_path) if e["event"] == "trial_epoch" and e["step"] > 200], TIMEOUT_S)
        for actor in workers_of(os.getpid(), "TrialActor"):
            if not booked(tmp_path):
                actor.kill()
                killed.append(actor.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    report = searched(tmp_path, {"search.trials": 1, "train.epochs": 150})
    thread.join()
    assert killed, "the trial had ended before"
    (trial,) = trials_of(report)
    assert trial["state"] == "completed"
    shown = [event["step"] for event in events(tmp_path) if event["event"] == "trial_epoch"]
    assert shown == sorted(set(shown)), "an epoch was booked twice"
    assert len(shown) == len(trial["curve"]) == 150
    (manifest,) = (path for path in tmp_path.glob("stages/*/manifest.json") if read_json(path)["stage"] == "train")
    assert read_json(manifest)["result"]["checkpoint_s"] > 0


def test_compression_keys_are_searched_on_each_winner_without_training_again(tmp_path: Path):
    report = searched(
        tmp_path,
        {
            "search.trials": 2,
            "search.compress_trials": 2,
            "search.concurrency": 1,
            "search.space": {
                "train.optimizer.lr": {"loguniform": [1e-3, 1e-2]},
                "train.label_smoothing": {"uniform": [0.0, 0.1]},
                "model.args.dropout": {"uniform": [0.0, 0.3]},
                "compress.prune.ratio": {"uniform": [0.3, 0.6]},
            },
            "compress": {"prune": {"recover": {"epochs": 1}}},
        },
    )
    manifests = [read_json(path) for path in tmp_path.glob("stages/*/manifest.json")]
    trained = [manifest for manifest in manifests if manifest["stage"] == "train"]
    assert len(trained) == 2, "two trials, and nothing beside"
    reused = {stage["name"]: stage["reused"] for stage in report.stages}
    assert reused["train"]
    assert reused["prune"]
    assert [trial["phase"] for trial in trials_of(report)] == ["train"] * 2 + ["compress"] * 2
    hashes = {stage["name"]: stage["hash"] for stage in report.stages}
    pruned = [manifest for manifest in manifests if manifest["stage"] == "prune"]
    assert len(pruned) == 2
    assert {manifest["inputs"]["parent"] for manifest in pruned} == {hashes["train"]}


@pytest.mark.slow
def test_a_population_ends_in_the_model_of_its_best_member(tmp_path: Path):
    report = searched(
        tmp_path,
        {
            "search.scheduler": "pbt",
            "search.trials": 4,
            "search.compress_trials": 1,
            "search.space": {
                "train.optimizer.lr": {"loguniform": [1e-5, 1e-2]},
                "model.args.dropout": {"uniform": [0.05, 0.3]},
                "compress.prune.ratio": {"uniform": [0.3, 0.6]},
            },
            "compress": {"prune": {"recover": {"epochs": 1}}},
        },
    )
    members = [trial for trial in trials_of(report) if trial["phase"] == "train"]
    assert {member["state"] for member in members} == {"completed"}
    assert {len(member["lineage"]) for member in members} == {3} == {len(member["curve"]) for member in members}
    manifests = {path.parent.name: read_json(path) for path in tmp_path.glob("stages/*/manifest.json")}
    assert "train" not in {manifest["stage"] for manifest in manifests.values()}, "something was trained apart"
    best = max(members, key=lambda member: member["values"]["metric"])
    (train,) = (stage for stage in report.stages if stage["name"] == "train")
    assert train["hash"] == best["lineage"][-1]["stage"]
    model = manifests[train["hash"]]
    assert model["result"]["metric"] == best["values"]["metric"]
    assert model["config"]["train"]["optimizer"]["lr"] == best["params"]["train.optimizer.lr"]
    pruned = [manifest for manifest in manifests.values() if manifest["stage"] == "prune"]
    assert {manifest["inputs"]["parent"] for manifest in pruned} == {train["hash"]}
    # What led to the model: each part goes on from the one before, whoever trained it.
    for before, after in pairwise(best["lineage"]):
        assert manifests[after["stage"]]["inputs"]["parent"] == before["stage"]
        assert (tmp_path / "stages" / before["stage"] / "checkpoint").is_dir()
    rows = pq.read_table(tmp_path / report.run_id / "trials.parquet").to_pylist()
    assert [json.loads(row["lineage"]) for row in rows if row["phase"] == "train"] == [m["lineage"] for m in members]
    assert remains(tmp_path) == []


def test_more_workers_than_the_cluster_has_are_refused_before_the_first_trial(tmp_path: Path):
    with pytest.raises(SpecError, match=r"resources.workers: 9 workers .* can never start") as caught:
        searched(tmp_path, {"resources.workers": 9, "layout": {"data": 9}, "train.batch_size": 36})
    assert caught.value.exit_code == 2
    assert list(tmp_path.glob("*/spec.yaml")) == []
    assert remains(tmp_path) == []


def command(tmp_path: Path, trials: int) -> list[str]:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(DIGITS))
    more = [f"--set=search.trials={trials}", "--set=train.epochs=40", "--set=search.scheduler=median"]
    return [*THRESHER, "run", str(spec), "--runs", str(tmp_path / "runs"), *more]


def start(arguments: list[str], temporary: Path) -> "subprocess.Popen[str]":
    """In a process group and with a folder for temporary files of its own."""
    return subprocess.Popen(
        arguments,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )


def booked(storage: Path) -> dict[int, Any]:
    return {event["number"]: event["params"] for event in events(storage) if event["event"] == "trial"}


@pytest.mark.slow
def test_a_stopped_search_leaves_nothing_and_a_killed_one_goes_on_with_the_same_trials(tmp_path: Path):
    storage = tmp_path / "runs"
    temporary = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))  # short: Ray's sockets are named below it
    process = start(command(tmp_path, trials=6), temporary)
    try:
        wait_for(lambda: len(booked(storage)) >= 1 or process.poll() is not None, TIMEOUT_S)
        assert process.poll() is None, process.communicate()
        left = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130, errors
        assert "thresher resume" in errors
        _, alive = psutil.wait_procs(left, timeout=20)
        assert alive == []
        kept = {"ray", "torchinductor_root"}  # Ray's logs, torch's cache
        assert {path.name for path in temporary.iterdir()} <= kept
        assert list(storage.rglob("tune")) == []
        first = booked(storage)
        (run_dir,) = (path.parent for path in storage.glob("*/spec.yaml"))
        again = [*THRESHER, "resume", run_dir.name, "--runs", str(storage)]
        process = start(again, temporary)
        wait_for(lambda: len(booked(storage)) >= len(first) + 1, TIMEOUT_S)
        second = booked(storage)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = start(again, temporary)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)
    report = RunReport.from_json(read_json(run_dir / "report.json"))
    check_each_booked_once(storage, report, 6)
    found = {trial["number"]: trial["params"] for trial in trials_of(report)}
    assert first.items() <= second.items() <= found.items()
    assert remains(storage) == []
    rows = pq.read_table(run_dir / "trials.parquet").to_pylist()
    assert sorted(row["number"] for row in rows) == sorted(found)
