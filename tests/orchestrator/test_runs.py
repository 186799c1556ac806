"""The run directory: its events, its spec, how it is found, and its one driver."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from small_stages import SPEC

from jobs.errors import SpecError
from orchestrator.runs import Run, Storage, read_lines


class TestEvents:
    def test_appended_and_told(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        told: list[dict[str, Any]] = []
        run.listeners.append(told.append)
        run.event("started", name="é\u2028\x85×", run_dir="x")
        run.event("finished", state="succeeded")
        run.metric(stage="train", step=1, loss=0.5)
        assert run.events() == told
        assert [event["event"] for event in told] == ["started", "finished"]
        assert told[0]["name"] == "é\u2028\x85×"
        assert run.metrics()[0]["loss"] == 0.5
        assert len((run.folder / "events.jsonl").read_bytes().splitlines()) == 2

    @pytest.mark.parametrize("cut", [1, 5, 12, 30])
    def test_a_line_that_a_crash_cut_off_is_passed_over(self, cut: int, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        run.event("first")
        run.event("second", text="ééééé")
        path = run.folder / "events.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        whole = ["first", "second"] if cut == 1 else ["first"]
        assert [event["event"] for event in run.events()] == whole
        # And it takes nothing that is written after it down.
        run.event("third")
        run.event("fourth")
        assert [event["event"] for event in run.events()] == [*whole, "third", "fourth"]

    def test_no_file_is_no_events(self, tmp_path: Path) -> None:
        assert read_lines(tmp_path / "events.jsonl") == []

    def test_lines_of_several_threads_stay_whole(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)

        def write(number: int) -> None:
            for _ in range(50):
                run.event("step", thread=number, text="x" * 200)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(run.events()) == 200


class TestRuns:
    def test_the_spec_is_kept_as_it_was_asked_for(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        assert run.spec == SPEC
        assert run.spec.document() == SPEC.document()
        assert storage.create_run(SPEC).id != run.id

    def test_found_by_id_and_by_folder(self, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = storage.create_run(SPEC)
        assert storage.find_run(run.id).folder == run.folder
        assert storage.find_run(str(run.folder)).folder == run.folder
        monkeypatch.chdir(tmp_path)
        assert storage.find_run(f"runs/{run.id}").folder == run.folder
        # A folder of the same name that is no run does not stand before it.
        (tmp_path / run.id).mkdir()
        assert storage.find_run(run.id).folder == run.folder

    def test_a_misspelt_id_gets_the_nearest(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        with pytest.raises(SpecError) as caught:
            storage.find_run(run.id[:-1])
        assert caught.value.problems[0].nearest == run.id

    @pytest.mark.parametrize(
        "name", ["../other/run", "..", ".", "", "stages", "datasets", "a\n", "a/b", "/etc", "x" * 999]
    )
    def test_names_that_are_no_runs(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = Storage(tmp_path / "runs")
        for place in ("other/run", "runs/a/b"):
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "spec.yaml").write_text("name: x\n")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        if name == "../other/run":
            monkeypatch.chdir(tmp_path / "runs" / "a")  # from where the name leads to no folder
        with pytest.raises(SpecError, match="no run"):
            storage.find_run(name)

    def test_one_driver_at_a_time(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)
        refused = pytest.raises(SpecError, match=f"driven by process {os.getpid()}")
        with run.driving(), refused, Run(run.folder).driving():
            pass
        with run.driving():
            pass  # the first has ended

    def test_a_dead_driver_is_none(self, storage: Storage) -> None:
        run = storage.create_run(SPEC)

        def drive() -> None:
            with Run(run.folder).driving():
                os._exit(9)

        process = multiprocessing.get_context("fork").Process(target=drive)
        process.start()
        process.join(30)
        assert process.exitcode == 9
        with run.driving():
            assert (run.folder / ".driver").read_text() == str(os.getpid())
