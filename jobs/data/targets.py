"""Targets: from what stands in a source to labels 0 … classes-1, or to float32 values."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.data.raw import Array
from jobs.errors import DataError

MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Target:
    """What a source says is to be predicted.

    Attributes:
        values: (samples,) numbers, booleans or text; with `names`, indices into them.
        names: class names in label order, where the source fixes them; such targets can't be regressed on.
        continuous: whether only regression makes sense, whatever the values look like.
        path: where in the spec the target is said.
    """

    values: Array
    names: tuple[str, ...] | None = None
    continuous: bool = False
    path: str = "data.source.path"


@dataclass(frozen=True)
class Labels:
    """Targets as a model sees them: int64 labels with `classes`, or float32 values without."""

    train: Array
    test: Array | None
    classes: tuple[str, ...]


def encode_targets(train: Target, test: Target | None, loss: str) -> Labels:
    """Labels for cross_entropy and bce, values for mse. Raises DataError for targets the loss can't use."""
    parts = [train] if test is None else [train, test]
    for part in parts:
        _check_finite(part)
    if loss == "mse":
        values = [_as_values(part) for part in parts]
        return Labels(values[0], values[1] if test is not None else None, ())
    classes, labels = _as_labels(parts)
    if len(classes) < 2:
        raise DataError.at(train.path, f"all targets are {classes[0]!r}: one class only", None, "at least 2 classes")
    if loss == "bce" and len(classes) != 2:
        allowed = "a target with exactly 2 classes, or cross_entropy"
        raise DataError.at("train.loss", f"bce predicts 2 classes, and the data have {len(classes)}", "bce", allowed)
    return Labels(labels[0], labels[1] if test is not None else None, classes)


def _check_finite(target: Target) -> None:
    if target.values.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(target.values))
    if bad.size:
        missing = f"{bad.size} of {len(target.values)} targets are missing or not finite, the first in row {bad[0] + 1}"
        raise DataError.at(target.path, missing, None, "a finite target in every row")


def _as_values(target: Target) -> npt.NDArray[np.float32]:
    if target.names is not None:
        what = f"mse needs numbers to predict, and the data have classes ({', '.join(target.names[:3])}, …)"
        raise DataError.at("train.loss", what, "mse", "cross_entropy")
    if target.values.dtype.kind not in "iufb":
        first = str(target.values[0])
        raise DataError.at(target.path, f"mse needs a numeric target, and this one is text ({first!r}, …)", None)
    with np.errstate(over="ignore"):
        values = target.values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError.at(target.path, "targets are beyond the range of float32", None, "up to 3.4e38")
    return values


def _as_labels(parts: list[Target]) -> tuple[tuple[str, ...], list[npt.NDArray[np.int64]]]:
    first = parts[0]
    fractional = any(p.values.dtype.kind == "f" and bool((p.values != np.trunc(p.values)).any()) for p in parts)
    if first.continuous or fractional:
        what = "the target is a continuous number, and the loss predicts classes"
        raise DataError.at("train.loss", what, None, "mse for this target")
    if first.names is not None:
        return first.names, [part.values.astype(np.int64) for part in parts]
    known, codes = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
    if len(known) > MAX_CLASSES:
        raise DataError.at(first.path, f"the target has {len(known)} different values", None, f"{MAX_CLASSES} classes")
    bounds = np.cumsum([len(part.values) for part in parts])[:-1]
    return tuple(map(_class_name, known)), list(np.split(codes.astype(np.int64), bounds))


def _class_name(value: np.generic) -> str:
    """7.0 is called "7", True "true", text as it stands."""
    item = value.item()
    if isinstance(item, bool):
        return str(item).lower()
    return str(int(item)) if isinstance(item, float) else str(item)
