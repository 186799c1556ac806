"""What is kept of a model's outputs: all of them, or of a language model, whose logits are too many, three columns."""

import numpy as np

IGNORED = -100
"""The target of a step that has none: the end of a text, and padding."""


def condense(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the metrics need of a batch's outputs.

    Outputs (batch, k) of targets (batch,) stay as they are. Of a language model's logits (batch, steps, vocabulary)
    with targets (batch, steps), three columns are left, (batch, 3) float64: the negative log-likelihood of the
    targets (nats, summed over the steps), how many of them have the largest logit, and how many there are. Steps
    whose target is IGNORED count nowhere. Logits that are not finite give a likelihood that is not.

    Raises:
        ValueError: outputs and targets do not belong together.
    """
    if outputs.shape[: targets.ndim] != targets.shape or outputs.ndim != targets.ndim + 1:
        raise ValueError(f"outputs of shape {outputs.shape} do not go with targets of shape {targets.shape}")
    if targets.ndim == 1:
        return outputs
    # One sample at a time: what is computed on the way stays in the cache.
    rows = [_condensed(logits, labels) for logits, labels in zip(outputs, targets, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(targets), 3)


def _condensed(logits: np.ndarray, targets: np.ndarray) -> tuple[float, int, int]:
    """The three columns of one sample: logits (steps, vocabulary), targets (steps,)."""
    counted = np.flatnonzero(targets != IGNORED)
    logits, targets = logits[counted], targets[counted]
    steps = np.arange(len(counted))
    predicted = logits.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        shifted = logits - logits[steps, predicted][:, None]
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[steps, targets]
    return float(losses.sum(dtype=np.float64)), int((predicted == targets).sum()), len(counted)


def next_tokens(logits: np.ndarray, tokens: np.ndarray, last_code: int) -> np.ndarray:
    """What most likely follows each text: (batch, 2) float64, a code and its probability.

    Never the padding, nor a code beyond `last_code`, which rounding the vocabulary up has added. Logits that are not
    finite give a probability that is not.

    Args:
        logits: (batch, steps, vocabulary).
        tokens: (batch, steps), 0 beyond the end.
    """
    rows = np.arange(len(tokens))
    probabilities = softmax(logits[rows, (tokens != 0).sum(axis=1) - 1].astype(np.float64))
    codes = 1 + probabilities[:, 1 : last_code + 1].argmax(axis=1)
    return np.stack([codes, probabilities[rows, codes]], axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes), float64, of logits (n, classes)."""
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
