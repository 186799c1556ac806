"""The store does what a model of it does, whatever is called in whatever order."""

import shutil
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from orchestrator.store import Store

from .machine import StoreMachine

CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)


def check(machine: type[StoreMachine], *, examples: int, steps: int, seeded: bool) -> None:
    """Runs a machine; `seeded`: the same way each time."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=CHECKS,
        derandomize=seeded,
    )
    run_state_machine_as_test(machine, settings=options)


def run_machine(folder: Path, *, examples: int, steps: int, seeded: bool) -> None:
    empty = folder / "empty.db"
    Store.open(f"sqlite:///{empty}").close()
    numbers = count()

    class OnSqlite(StoreMachine):
        @staticmethod
        def fresh() -> str:
            place = folder / f"{next(numbers)}.db"
            shutil.copy(empty, place)
            return f"sqlite:///{place}"

    check(OnSqlite, examples=examples, steps=steps, seeded=seeded)


def test_the_store_is_its_model(tmp_path: Path):
    run_machine(tmp_path, examples=10, steps=40, seeded=True)


@pytest.mark.slow
def test_the_store_is_its_model_for_long(tmp_path: Path):
    run_machine(tmp_path, examples=400, steps=60, seeded=False)
