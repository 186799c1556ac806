"""Losses as sums over samples, or tokens: the loop divides by the whole batch's weight, whatever part it holds."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from jobs.measure.outputs import IGNORED
from jobs.spec.train import Train


class Loss:
    """A loss whose sum over any partition of a batch adds up to the whole batch's.

    Args:
        train: names the loss, the label smoothing and the class weights.
        class_counts: samples a class in the training split, for `class_weights: balanced`.
    """

    def __init__(self, train: Train, class_counts: npt.NDArray[np.int64] | None, device: torch.device) -> None:
        self.name = train.loss
        self.device = device
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
        """What the sum over these samples is to be divided by: their number, or their classes' weights.

        Of a language model, whose targets are (batch, steps): the number of tokens that count.
        """
        if targets.ndim == 2:
            return float(np.count_nonzero(targets != IGNORED))
        if self.weights is None:
            return float(len(targets))
        return float(self.weights[targets.astype(np.int64)].sum())

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the samples. outputs: (batch, outputs) float; targets: (batch,).

        Of a language model: the sum over all tokens that count. outputs: (batch, steps, vocabulary); targets: (batch,
        steps), IGNORED where there is none.
        """
        outputs = outputs.float()
        if targets.dim() == 2:
            return functional.cross_entropy(
                outputs.flatten(0, 1),
                targets.flatten(),
                reduction="sum",
                ignore_index=IGNORED,
                label_smoothing=self.smoothing,
            )
        if self.name == "cross_entropy":
            return self._cross_entropy(outputs, targets)
        values = outputs.squeeze(-1)
        if self.name == "mse":
            return functional.mse_loss(values, targets.float(), reduction="sum")
        each = functional.binary_cross_entropy_with_logits(values, targets.float(), reduction="none")
        return (each if self._tensor is None else each * self._tensor[targets.long()]).sum()

    def from_condensed(self, outputs: npt.NDArray[np.floating], targets: npt.NDArray[np.generic]) -> float:
        """The mean loss over a split, from its condensed outputs (see `jobs.measure.outputs.condense`).

        Of a language model, outputs are (samples, 3), and labels are not smoothed: the columns do not tell by how much.
        """
        if targets.ndim == 2:
            losses, _, tokens = outputs.sum(axis=0, dtype=np.float64)
            return float(losses / tokens)
        with torch.no_grad():
            total = self(torch.from_numpy(outputs).to(self.device), torch.tensor(targets, device=self.device))
        return total.item() / self.weight(targets)

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Smoothing spreads its share evenly over the classes; a sample weighs as its own class does."""
        if self._tensor is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.smoothing)
        each = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        return (each * self._tensor[targets]).sum()


def distillation(
    outputs: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, *, task: str, temperature: float
) -> torch.Tensor:
    """Sum over samples of the distance to the teacher's outputs (Hinton, Vinyals & Dean 2015).

    Classes: temperature² · KL(teacher ‖ student) of the softened distributions, or of the two outcomes for one
    logit. Regression: squared error. Language models: as classes, summed over the tokens that count.

    Args:
        outputs: (batch, outputs), of a language model (batch, steps, vocabulary).
        teacher: of the same shape.
        targets: (batch,), of a language model (batch, steps); they only say which steps count.
    """
    if targets.dim() == 2:
        counted = targets != IGNORED
        outputs, teacher = outputs[counted], teacher[counted]
    outputs, teacher = outputs.float(), teacher.float()
    if task == "regression":
        return functional.mse_loss(outputs, teacher, reduction="sum")
    if outputs.shape[-1] == 1:
        outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=-1)
        teacher = torch.cat([torch.zeros_like(teacher), teacher], dim=-1)
    student_log = functional.log_softmax(outputs / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
