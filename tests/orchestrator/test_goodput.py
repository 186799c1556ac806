"""Where the wall time went: hand-made events, exact figures."""

from typing import Any

import pytest

from jobs.records import Goodput
from orchestrator.goodput import goodput


def at(t: float, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "event": event, **fields}


def stage(t: float, name: str, seconds: float, *, reused: bool = False, checkpoint_s: float | None = None) -> Any:
    return at(t, "stage", stage=name, stage_hash=name, reused=reused, seconds=seconds, checkpoint_s=checkpoint_s)


def parts(found: Goodput) -> dict[str, float]:
    return {name: value for name, value in found.to_json().items() if isinstance(value, float) and value}


def test_nothing_happened() -> None:
    found = goodput([])
    assert parts(found) == {}
    assert found.restarts == ()
    assert parts(goodput([at(5, "started")])) == {}


def test_a_run_without_incidents() -> None:
    found = goodput(
        [
            at(100, "started"),
            at(101, "prepared", dataset="d", reused=False, seconds=1.0),
            at(104, "connected", seconds=3.0),
            at(110, "workers_started", workers=2, seconds=6.0),
            stage(130, "train", 18.0, checkpoint_s=2.0),
            stage(135, "export", 5.0),
            stage(140, "measure", 4.0),
            at(140, "finished", state="succeeded"),
        ]
    )
    assert parts(found) == {
        "wall_s": 40.0,
        "startup_s": 9.0,
        "checkpoint_s": 2.0,
        "productive_s": 1.0 + 18.0 + 5.0 + 4.0 - 2.0,
        "ettr": pytest.approx(26 / 40),
    }


def test_what_was_there_already_is_no_work_of_this_run() -> None:
    found = goodput([at(0, "started"), stage(1, "train", 500.0, reused=True, checkpoint_s=9.0), at(2, "finished")])
    assert parts(found) == {"wall_s": 2.0}


def test_time_between_attempts_does_not_count() -> None:
    events = [
        at(0, "started"),
        stage(10, "train", 9.0),
        at(12, "interrupted"),
        at(1000, "started"),
        stage(1004, "export", 4.0),
        at(1005, "finished"),
    ]
    found = goodput(events)
    assert parts(found) == {"wall_s": 12.0 + 5.0, "productive_s": 13.0, "ettr": pytest.approx(13 / 17)}


def test_a_crash_leaves_no_last_word() -> None:
    found = goodput([at(0, "started"), at(7, "step", label="train", step=3, step_s=0.5), at(100, "started")])
    assert found.wall_s == 7.0


class TestSearch:
    def test_trials_that_fill_their_seats_are_work(self) -> None:
        events = [
            at(0, "started"),
            at(0, "search_started", phase="train", stage="search", trials=4),
            *(at(10 * (1 + i // 2), "trial", stage="search", number=i, seconds=10.0) for i in range(4)),
            at(20, "search_finished", phase="train", stage="search", seconds=20.0),
            at(20, "finished"),
        ]
        assert parts(goodput(events, slots=2)) == {"wall_s": 20.0, "productive_s": 20.0, "ettr": 1.0}

    def test_empty_seats_are_startup(self) -> None:
        events = [
            at(0, "started"),
            at(12, "trial", stage="search", number=0, seconds=10.0),
            at(16, "search_finished", phase="train", stage="search", seconds=16.0),
            at(16, "finished"),
        ]
        found = goodput(events, slots=1)
        assert parts(found) == {"wall_s": 16.0, "startup_s": 6.0, "productive_s": 10.0, "ettr": 0.625}

    def test_the_search_stage_is_not_counted_beside_its_trials(self) -> None:
        events = [
            at(0, "started"),
            at(10, "trial", stage="search", number=0, seconds=10.0),
            stage(10, "search", 10.0),
            at(10, "search_finished", phase="train", stage="search", seconds=10.0),
            at(15, "trial", stage="search/compress", number=0, seconds=5.0),
            stage(15, "search/compress", 5.0),
            at(15, "search_finished", phase="compress", stage="search/compress", seconds=5.0),
            at(15, "finished"),
        ]
        found = goodput(events)
        assert found.productive_s == 15.0
        assert found.ettr == 1.0

    def test_a_search_that_was_there_already_counts_only_its_moment(self) -> None:
        events = [
            at(0, "started"),
            at(1, "trial", stage="search", number=0, seconds=50.0),
            at(1, "search_finished", phase="train", stage="search", seconds=0.5),
            at(1, "finished"),
        ]
        found = goodput(events)
        assert (found.productive_s, found.startup_s) == (0.5, 0.0)


class TestLosses:
    EVENTS = (
        at(0, "started"),
        at(10, "step", label="train", step=10, step_s=0.8),
        at(18, "step", label="train", step=20, step_s=0.8),
        at(20, "restart", stage="train", cause="worker 1 died", count=1),
        at(26, "resumed", label="train", step=15),
        at(30, "step", label="train", step=20, step_s=99.0),
        at(38, "step", label="train", step=30, step_s=0.8),
        stage(40, "train", 40.0, checkpoint_s=1.0),
        at(40, "finished"),
    )

    def test_restart_and_recompute(self) -> None:
        found = goodput(list(self.EVENTS))
        assert found.restart_s == 6.0
        assert found.recompute_s == pytest.approx(5 * 0.8)
        assert found.checkpoint_s == 1.0
        assert found.productive_s == pytest.approx(40 - 1 - 4 - 6)
        assert found.ettr == pytest.approx(29 / 40)
        assert found.restarts == ({"stage": "train", "cause": "worker 1 died", "t": 20},)

    def test_a_resume_at_the_same_step_loses_nothing(self) -> None:
        events = [*self.EVENTS[:3], at(20, "started"), at(21, "resumed", label="train", step=20), at(22, "finished")]
        found = goodput(events)
        assert found.recompute_s == 0.0
        assert found.restart_s == 0.0

    def test_trainings_have_steps_of_their_own(self) -> None:
        events = [
            at(0, "started"),
            at(10, "step", label="train", step=100, step_s=0.1),
            at(11, "resumed", label="recover/pruned", step=3),
            at(12, "finished"),
        ]
        assert goodput(events).recompute_s == 0.0

    def test_a_loss_that_nothing_followed_costs_no_restart(self) -> None:
        events = [
            at(0, "started"),
            at(5, "restart", stage="train", cause="x", count=1),
            at(9, "failed"),
            at(50, "started"),
        ]
        found = goodput([*events, at(51, "step", label="train", step=1), at(51, "finished")])
        assert found.restart_s == 0.0
        assert found.wall_s == 10.0


def test_shares_never_exceed_the_whole() -> None:
    found = goodput([at(0, "started"), stage(10, "train", 25.0), at(10, "finished")])
    assert found.ettr == 1.0
    found = goodput([at(0, "started"), stage(10, "train", 5.0, checkpoint_s=9.0), at(10, "finished")])
    assert found.productive_s == 0.0


def test_starting_workers_within_a_stage_counts_once() -> None:
    found = goodput(
        [
            at(0, "started"),
            at(1, "stage_started", stage="train"),
            at(7, "workers_started", workers=2, seconds=6.0, queued_s=2.0),
            stage(20, "train", 19.0),
            at(20, "finished", state="succeeded"),
        ]
    )
    assert found.queued_s == 2.0
    assert found.startup_s == 4.0
    assert found.productive_s == 13.0
    assert found.ettr == pytest.approx(13 / 18)


def test_what_a_broken_off_attempt_did_up_to_its_checkpoint_counts() -> None:
    found = goodput(
        [
            at(0, "started"),
            at(2, "stage_started", stage="train"),
            at(9, "step", label="train", step=80, step_s=0.1),
            at(10, "step", label="train", step=90, step_s=0.1),
            at(100, "started"),
            at(101, "stage_started", stage="train"),
            at(101, "resumed", label="train", step=60),
            stage(106, "train", 5.0),
            at(106, "finished", state="succeeded"),
        ]
    )
    assert found.wall_s == 16.0
    assert found.recompute_s == pytest.approx(3.0)
    assert found.productive_s == pytest.approx(8.0 + 5.0 - 3.0)


def test_growing_costs_and_is_said() -> None:
    found = goodput(
        [
            at(0, "started"),
            at(0, "stage_started", stage="train"),
            at(6, "resize", stage="train", workers=4, seconds=1.5),
            stage(10, "train", 10.0),
        ]
    )
    assert found.restart_s == 1.5
    assert [entry["cause"] for entry in found.restarts] == ["grew to 4 workers"]
