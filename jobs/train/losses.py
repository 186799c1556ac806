"""Losses as sums over samples: the loop divides by the whole batch's weight, whatever part it holds."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from jobs.spec.train import Train


class Loss:
    """A loss whose sum over any partition of a batch adds up to the whole batch's.

    Args:
        train: names the loss, the label smoothing and the class weights.
        class_counts: samples a class in the training split, for `class_weights: balanced`.
    """

    def __init__(self, train: Train, class_counts: npt.NDArray[np.int64] | None, device: torch.device) -> None:
        self.name = train.loss
        self.smoothing = train.label_smoothing
        self.weights: npt.NDArray[np.float64] | None = None
        if train.class_weights == "balanced" and class_counts is not None:
            self.weights = class_counts.sum() / (len(class_counts) * np.maximum(class_counts, 1))
        elif isinstance(train.class_weights, tuple):
            self.weights = np.asarray(train.class_weights, dtype=np.float64)
        self._tensor = None
        if self.weights is not None:
            self._tensor = torch.tensor(self.weights, dtype=torch.float32, device=device)

    def weight(self, targets: npt.NDArray[np.generic]) -> float:
        """What the sum over these samples is to be divided by: their number, or their classes' weights."""
        if self.weights is None:
            return float(len(targets))
        return float(self.weights[targets.astype(np.int64)].sum())

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the samples. outputs: (batch, outputs) float; targets: (batch,)."""
        outputs = outputs.float()
        if self.name == "cross_entropy":
            return self._cross_entropy(outputs, targets)
        values = outputs.squeeze(-1)
        if self.name == "mse":
            return functional.mse_loss(values, targets.float(), reduction="sum")
        each = functional.binary_cross_entropy_with_logits(values, targets.float(), reduction="none")
        return (each if self._tensor is None else each * self._tensor[targets.long()]).sum()

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Smoothing spreads its share evenly over the classes; a sample weighs as its own class does."""
        if self._tensor is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)
        each = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        return (each * self._tensor[targets]).sum()


def distillation(outputs: torch.Tensor, teacher: torch.Tensor, *, task: str, temperature: float) -> torch.Tensor:
    """Sum over samples of the distance to the teacher's outputs (Hinton, Vinyals & Dean 2015).

    Classes: temperature² · KL(teacher ‖ student) of the softened distributions, or of the two outcomes for one
    logit. Regression: squared error.
    """
    outputs, teacher = outputs.float(), teacher.float()
    if task == "regression":
        return functional.mse_loss(outputs, teacher, reduction="sum")
    if outputs.shape[-1] == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=-1)
        teacher = torch.cat([torch.zeros_like(teacher), teacher], dim=-1)
    student_log = functional.log_softmax(outputs / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
