"""Metrics of a model's outputs, with their uncertainty.

Outputs are what the model gives: logits (n, classes) under cross_entropy, one logit (n, 1) under bce, values (n, 1)
for regression. Targets are (n,): labels, or values. Of a language model, outputs are the three columns (n, 3) that
`condense` leaves of its logits, and targets are (n, steps). All intervals are at 95 %.
"""

from collections.abc import Iterator
from math import log, sqrt
from typing import Any

import numpy as np

from jobs.errors import DataError
from jobs.measure.statistics import predicted_classes, statistic
from jobs.records import Delta, Interval
from jobs.spec.job import HIGHER_IS_BETTER

_NUM_RESAMPLES = 1000
# An area under the curve costs as much for every class as another metric does for all of them.
_NUM_RESAMPLES_ROC_AUC = 200
_Z95 = 1.959963984540054


def evaluate(name: str, outputs: np.ndarray, targets: np.ndarray) -> float:
    """A metric by its name in the spec.

    - accuracy: share of the samples whose largest logit is the label's.
    - f1_macro: mean F1 over the classes that occur among labels or predictions.
    - roc_auc: area under the ROC curve; one class against the rest, mean over the classes that occur.
    - log_loss: mean negative log-likelihood, in nats.
    - rmse, mae: in the units of the target.
    - of a language model: accuracy and log_loss of its tokens, and perplexity, which is e to the log_loss.

    NaN where an output is not finite.

    Raises:
        DataError: roc_auc of targets that are all alike.
    """
    if not np.isfinite(outputs).all():
        return float("nan")
    value = statistic(name, outputs, targets)(np.ones(len(targets)))
    if name == "roc_auc" and np.isnan(value):
        raise DataError.at("metric", "roc_auc is undefined where all samples are of one class")
    return value


def interval(name: str, outputs: np.ndarray, targets: np.ndarray, *, split: str, seed: int = 0) -> Interval:
    """A metric with its 95 % interval.

    Accuracy: Wilson's score interval (Wilson 1927). Others: percentile bootstrap (Efron & Tibshirani 1993) with 1000
    resamples, 200 for roc_auc. The same seed gives the same interval. What is resampled, for language models too, are
    whole samples, since the tokens of one text depend on each other (a cluster bootstrap: Davison & Hinkley 1997);
    `n` is their number.

    Args:
        name: of the metric; see `evaluate`, also for the shapes.
        outputs: of the model, finite.
        targets: of the same samples.
        split: where the samples are from.
        seed: of the resamples.
    """
    value = evaluate(name, outputs, targets)
    num_samples = len(targets)
    if name == "accuracy" and targets.ndim == 1:
        ci95 = _wilson(value, num_samples)
    else:
        replicate = statistic(name, outputs, targets)
        ci95 = _percentiles([replicate(weights) for weights in _resamples(name, num_samples, seed)])
    return Interval(name=name, value=value, ci95=ci95, n=num_samples, split=split)


def paired_delta(
    name: str, outputs: np.ndarray, parent_outputs: np.ndarray, targets: np.ndarray, seed: int = 0
) -> Delta:
    """How much better a model is than its parent on the same samples; negative where it is worse.

    The sign is that of the improvement, whichever way the metric goes. What makes a sample hard for both cancels out:
    the interval is far narrower than the difference of two.

    Accuracy: the adjusted Wald interval for matched pairs (Agresti & Min 2005), which, unlike the bootstrap, does not
    shrink to nothing where two models happen to agree on every sample. Others, and all metrics of language models:
    paired bootstrap, as in `interval`.
    """
    sign = 1.0 if name in HIGHER_IS_BETTER else -1.0
    value = evaluate(name, outputs, targets) - evaluate(name, parent_outputs, targets)
    if name == "accuracy" and targets.ndim == 1:
        return Delta(value=value, ci95=_matched_pairs(outputs, parent_outputs, targets))
    child, parent = statistic(name, outputs, targets), statistic(name, parent_outputs, targets)
    replicates = [sign * (child(w) - parent(w)) for w in _resamples(name, len(targets), seed)]
    return Delta(value=sign * value, ci95=_percentiles(replicates))


def details(outputs: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """What stands behind the one figure, as JSON.

    With classes: `classes` (names), `precision`, `recall`, `f1` and `support` (a figure a class, in label order), and
    `confusion` (rows: true class, columns: predicted). Without: `rmse`, `mae`,
    `r2` (None where the targets are all alike). Of a language model: `perplexity`, `accuracy`, `bits_per_token`,
    `tokens` (that count) and `samples`.
    """
    if targets.ndim == 2:
        return {
            "perplexity": evaluate("perplexity", outputs, targets),
            "accuracy": evaluate("accuracy", outputs, targets),
            "bits_per_token": evaluate("log_loss", outputs, targets) / log(2.0),
            "tokens": int(outputs[:, 2].sum(dtype=np.float64)),
            "samples": len(targets),
        }
    if not classes:
        targets = targets.astype(np.float64)
        spread = float(((targets - targets.mean()) ** 2).mean())
        rmse = evaluate("rmse", outputs, targets)
        r2 = 1.0 - rmse**2 / spread if spread > 0.0 else None
        return {"rmse": rmse, "mae": evaluate("mae", outputs, targets), "r2": r2}
    num_classes = len(classes)
    cells = targets.astype(np.int64) * num_classes + predicted_classes(outputs)
    confusion = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    hits, predicted, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    columns = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2.0 * hits / np.maximum(predicted + support, 1),
    }
    return {
        "classes": list(classes),
        **{key: column.tolist() for key, column in columns.items()},
        "support": support.tolist(),
        "confusion": confusion.tolist(),
    }


def _resamples(name: str, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample is drawn, (n,), float64, with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(_NUM_RESAMPLES_ROC_AUC if name == "roc_auc" else _NUM_RESAMPLES):
        drawn = rng.integers(num_samples, size=num_samples)
        yield np.bincount(drawn, minlength=num_samples).astype(np.float64)


def _percentiles(replicates: list[float]) -> tuple[float, float]:
    # A resample of a small split may hold one class alone: roc_auc has no value there.
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def _matched_pairs(outputs: np.ndarray, parent_outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    right, parent_right = (predicted_classes(o) == targets for o in (outputs, parent_outputs))
    # Half a sample is added to each of the four outcomes.
    gained = float((right & ~parent_right).sum()) + 0.5
    lost = float((parent_right & ~right).sum()) + 0.5
    total = len(targets) + 2.0
    middle = (gained - lost) / total
    half = _Z95 * sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)


def _wilson(share: float, num_samples: int) -> tuple[float, float]:
    spread = _Z95**2 / num_samples
    middle = (share + spread / 2.0) / (1.0 + spread)
    half = _Z95 * sqrt(share * (1.0 - share) / num_samples + spread / (4.0 * num_samples)) / (1.0 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
