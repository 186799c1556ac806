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
