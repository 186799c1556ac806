"""A spec that is good but for what a case changes, and the look at its refusal."""

from typing import Any

from jobs.errors import SpecError
from jobs.spec.load import with_values

Cases = dict[str, tuple[dict[str, Any], str, tuple[str, ...]]]
"""What is wrong -> values over BASE, the path of the problem, parts of its text."""
BASE: dict[str, Any] = {
    "name": "bad",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}
LR, DROPOUT = "train.optimizer.lr", "model.args.dropout"


def spec_with(values: dict[str, Any]) -> dict[str, Any]:
    return with_values(BASE, values)


def space(key: str, dimension: Any, **search: Any) -> dict[str, Any]:
    return {"search": {"space": {key: dimension}, **search}}


def check(error: SpecError, path: str, parts: tuple[str, ...]) -> None:
    """Some problem is at the path, and its text holds all the parts."""
    texts = [str(problem) for problem in error.problems if problem.path == path]
    assert texts, f"no problem at {path!r}: {error}"
    assert any(all(part in text for part in parts) for text in texts), f"{parts} are not all in {texts}"
