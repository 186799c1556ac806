"""Metrics as *statistics*: functions of sample weights (n,).

All ones give the metric itself; counts of a resample give a bootstrap replicate, without computing predictions or
sorting scores again.
"""

import sys
from collections.abc import Callable
from math import exp, log

import numpy as np

Statistic = Callable[[np.ndarray], float]
_MAX_EXPONENT = log(sys.float_info.max)


def statistic(name: str, outputs: np.ndarray, targets: np.ndarray) -> Statistic:
    """The metric as a function of sample weights (n,). Not finite where the weights leave it undefined.

    Args:
        name: of the metric; see `jobs.measure.metrics.evaluate`.
        outputs: condensed (see `condense`): (n, outputs), of language models (n, 3).
        targets: (n,), of language models (n, steps).
    """
    if outputs.ndim != 2 or len(targets) != len(outputs) or len(targets) == 0 or targets.ndim > 2:
        raise ValueError(f"outputs of shape {outputs.shape} do not go with targets of shape {targets.shape}")
    if targets.ndim == 2:
        return _of_tokens(name, *np.ascontiguousarray(outputs.T, dtype=np.float64))
    if name in ("rmse", "mae"):
        error = outputs[:, 0].astype(np.float64) - targets
        return _mean(np.abs(error)) if name == "mae" else _root_mean(error**2)
    labels = targets.astype(np.int64)
    if name == "accuracy":
        return _mean((predicted_classes(outputs) == labels).astype(np.float64))
    if name == "f1_macro":
        return _f1_macro(predicted_classes(outputs), labels, max(outputs.shape[1], 2))
    if name == "log_loss":
        return _mean(-_log_probabilities(outputs)[np.arange(len(labels)), labels])
    if name == "roc_auc":
        return _roc_auc(_scores(outputs), labels)
    raise ValueError(f"unknown metric {name!r}")


def _of_tokens(name: str, losses: np.ndarray, hits: np.ndarray, tokens: np.ndarray) -> Statistic:
    """Metrics of a language model: ratios of sums over samples, since samples differ in their number of tokens."""
    if name == "accuracy":
        return _ratio(hits, tokens)
    loss = _ratio(losses, tokens)
    if name == "log_loss":
        return loss
    if name == "perplexity":
        return lambda weights: _exp(loss(weights))
    raise ValueError(f"{name!r} is no metric of language models")


def predicted_classes(outputs: np.ndarray) -> np.ndarray:
    """Labels (n,), int64, from logits (n, classes) or (n, 1)."""
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).astype(np.int64)
    return np.argmax(outputs, axis=1)


def _mean(values: np.ndarray) -> Statistic:
    return lambda weights: float(weights @ values / weights.sum())


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    def ratio(weights: np.ndarray) -> float:
        total = float(weights @ denominators)
        return float(weights @ numerators) / total if total > 0.0 else float("nan")

    return ratio


def _exp(exponent: float) -> float:
    return float("inf") if exponent > _MAX_EXPONENT else exp(exponent)


def _root_mean(values: np.ndarray) -> Statistic:
    return lambda weights: float(np.sqrt(weights @ values / weights.sum()))


def _f1_macro(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> Statistic:
    right = predictions == labels
    right_labels = labels[right]

    def f1_macro(weights: np.ndarray) -> float:
        hits = np.bincount(right_labels, weights[right], num_classes)
        total = np.bincount(labels, weights, num_classes) + np.bincount(predictions, weights, num_classes)
        occurs = total > 0
        return float((2.0 * hits[occurs] / total[occurs]).mean())

    return f1_macro


def _scores(outputs: np.ndarray) -> dict[int, np.ndarray]:
    """By class, what ranks the samples (n,) as their probability of it does, with fewer ties."""
    if outputs.shape[1] == 1:
        return {1: outputs[:, 0]}
    if outputs.shape[1] == 2:  # the other class is another view of the same curve
        return {1: outputs[:, 1].astype(np.float64) - outputs[:, 0]}
    return dict(enumerate(_log_probabilities(outputs).T))


def _roc_auc(scores: dict[int, np.ndarray], labels: np.ndarray) -> Statistic:
    """By the Mann-Whitney statistic; a tie counts half."""
    curves = []
    for label, score in scores.items():
        order = np.argsort(score, kind="stable")
        ranked = score[order]
        ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        curves.append((order, ties, labels[order] == label))

    def roc_auc(weights: np.ndarray) -> float:
        areas = []
        for order, ties, positive in curves:
            ranked = weights[order]
            positives = np.add.reduceat(ranked * positive, ties)
            negatives = np.add.reduceat(ranked * ~positive, ties)
            pairs = positives.sum() * negatives.sum()
            if pairs > 0:
                below = np.cumsum(negatives) - negatives / 2.0
                areas.append(positives @ below / pairs)
        return float(np.mean(areas)) if areas else float("nan")

    return roc_auc


def _log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """(n, max(classes, 2)), float64; in logarithms, so that certain predictions neither tie nor overflow."""
    logits = outputs.astype(np.float64)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
