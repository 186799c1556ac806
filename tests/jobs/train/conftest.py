"""A small real training, in this process: digits, LeNet or MLP, a few steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import data
from jobs.context import LocalContext
from jobs.data import Dataset
from jobs.layout import ParallelLayout
from jobs.models.build import build
from jobs.requests import Recipe
from jobs.spec import JobSpec


def document(**changes: Any) -> dict[str, Any]:
    # tanh: where a pre-activation lies within rounding of zero, a ReLU may open on one side of a comparison alone.
    return {
        "name": "small",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16], "activation": "tanh"}},
        "train": {"steps": 24, "batch_size": 32},
        **changes,
    }


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    spec = JobSpec.parse(document())
    folder = tmp_path_factory.mktemp("datasets") / data.fingerprint(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, folder)
    return Dataset.open(folder)


@dataclass
class StoppingContext(LocalContext):
    """Asks for an early end once `after` reports have come."""

    after: int = 10**9

    def stop_requested(self) -> bool:
        return len(self.reports) >= self.after


@pytest.fixture
def train(digits: Dataset) -> Callable[..., Any]:
    """Trains in this process: train(values, zero_stage=…, checkpoints=…) -> FitResult."""
    from jobs.train.loop import fit

    def run(
        values: dict[str, Any] | None = None,
        *,
        zero_stage: int = 0,
        micro_batch: int | None = None,
        checkpoints: Path | None = None,
        context: LocalContext | None = None,
        **fit_options: Any,
    ) -> Any:
        spec = JobSpec.parse(document()).replace(values or {})
        module = build(spec.model, digits.info.signature, seed=spec.train.seed)
        layout = ParallelLayout(zero_stage=zero_stage)
        recipe = Recipe(spec.train, spec.data, spec.metric, layout=layout, micro_batch=micro_batch)
        return fit(
            module, digits, recipe, context or LocalContext(), label="train", checkpoints=checkpoints, **fit_options
        )

    return run
