"""Searches without trainings: specs of each algorithm, and trials whose outcome is planted."""

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.searching.study import Asked, Study

NUMBERS = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.batch_size": {"int": [16, 64]},
    "model.args.dropout": {"uniform": [0.0, 0.5], "step": 0.1},
}
MIXED = {**NUMBERS, "model.args.activation": {"choice": ["relu", "tanh"]}}
COUNTABLE = {"train.batch_size": {"choice": [16, 32, 64]}, "model.args.dropout": {"uniform": [0.0, 0.5], "step": 0.1}}
CONDITIONAL = {
    "train.optimizer.momentum": {"uniform": [0.5, 0.9], "step": 0.1, "when": {"train.optimizer.name": "sgd"}},
    "train.optimizer.name": {"choice": ["sgd", "adamw"]},
    "train.optimizer.nesterov": {"choice": [True, False], "when": {"train.optimizer.name": ["sgd"]}},
    "train.batch_size": {"choice": [16, 32]},
}
SPACES = {
    "random": MIXED,
    "grid": COUNTABLE,
    "tpe": MIXED,
    "gp": MIXED,
    "nsga2": MIXED,
    "cmaes": NUMBERS,
    "qmc": MIXED,
}


def spec(**search: Any) -> JobSpec:
    algorithm = search.get("algorithm", "tpe")
    return JobSpec.parse(
        {
            "name": "small",
            "data": {"source": {"kind": "builtin", "name": "digits"}},
            "model": {"name": "mlp"},
            "search": {"trials": 24, "space": SPACES[algorithm], **search},
        }
    )


def told(asked: Asked, state: str = "completed", **fields: Any) -> Trial:
    """A trial's record; one that completed has values that depend on its params alone."""
    values = outcome(asked.params) if state == "completed" else {}
    given = {"phase": "train", "values": values, "seconds": 1.0, **fields}
    return Trial(number=asked.number, params=asked.params, state=state, **given)


def outcome(params: dict[str, Any]) -> dict[str, float]:
    """Smooth, with a trade-off between the metric and the size; the best rate is 0.01."""
    rate, batch = params.get("train.optimizer.lr", 1e-3), params.get("train.batch_size", 32)
    dropout = params.get("model.args.dropout", 0.0)
    metric = 0.9 - 0.05 * (math.log10(rate) + 2.0) ** 2 - abs(batch - 40) / 1000 + dropout / 9
    return {"metric": metric, "latency_ms": 1.0 + rate, "bytes": 1000.0 + batch * dropout}


def ran(study: Study, asked: Asked, phase: str = "train") -> None:
    """Every fourth trial is stopped after its first epoch, the other ones complete; some break the budget."""
    study.intermediate(asked.number, 1, outcome(asked.params)["metric"] - 0.1)
    if asked.number % 4 == 3:
        study.tell(told(asked, "pruned", phase=phase, cause="stopped at rung 1"))
    else:
        violation = asked.params.get("train.batch_size", 32) / 50 - 1.0
        study.tell(told(asked, phase=phase, violation=violation))


def reopened(folder: Path, name: str = "small/train") -> optuna.Study:
    """As optuna-dashboard would open it."""
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))))
