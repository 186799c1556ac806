"""The training loop: one for every model, layout and purpose (training, fine-tuning, distillation)."""

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from deepspeed import comm
from torch import nn

from jobs.context import Context
from jobs.data import Dataset, TrainingBatches
from jobs.errors import TrainingDiverged
from jobs.layout import share_batch
from jobs.measure.metrics import evaluate
from jobs.models.invariant import GROUPED
from jobs.requests import Recipe
from jobs.spec.compress import Distill
from jobs.train.checkpoint import Checkpoints, Position, part
from jobs.train.engine import Engine
from jobs.train.losses import Loss, distillation
from jobs.train.mesh import device, warm_up
from jobs.train.schedule import rate

SYNC_EVERY_STEPS = 10
"""Steps between looks at the losses: for divergence, and for a wish to stop."""
REPORT_EVERY_S = 0.5
"""Least time between two reports of steps: whoever reads them shares the machine with the training."""
EVALUATION_BATCH = 512


@dataclass
class History:
    """What a training has shown so far; survives a restart in the checkpoint."""

    losses: list[float] = field(default_factory=list)
    """One a step: the loss of the whole global batch."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Rows {epoch, step, split, loss, metric, lr}."""
    productive_s: float = 0.0
    checkpoint_s: float = 0.0

    def document(self) -> dict[str, object]:
        return dict(vars(self))


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        module: on the CPU, in fp32, whole on every rank; None if the training was stopped early.
    """

    module: nn.Module | None
    history: History
    steps: int

    @property
    def curve(self) -> tuple[float, ...]:
        """The validation metric after each epoch."""
        return tuple(row["metric"] for row in self.history.epochs if row["split"] == "validation")


def fit(
    module: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    context: Context,
    *,
    label: str,
    checkpoints: Path | None = None,
    teacher: nn.Module | None = None,
    distill: Distill | None = None,
) -> FitResult:
    """Trains `module` over all the workers of the group and returns it whole on each of them.

    Args:
        module: the same on every rank; left as it is.
        label: names this training in reports ("train", "recover 1/2").
        checkpoints: a folder that all ranks reach; a training that was broken off goes on from its newest entry.
        teacher: with `distill`, the dense parent whose outputs are learnt from.

    Raises:
        TrainingDiverged: a loss became NaN or infinite.
        SpecError: the batch does not divide over the workers.
    """
    warm_up(context)
    return _Training(module, dataset, recipe, context, label, checkpoints, teacher, distill).run()


class _Training:
    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        context: Context,
        label: str,
        checkpoints: Path | None,
        teacher: nn.Module | None,
        distill: Distill | None,
    ) -> None:
        train = recipe.train
        self.recipe, self.train, self.context, self.label = recipe, train, context, label
        self.dataset = dataset
        self.share = share_batch(train.batch_size, context.size, recipe.micro_batch, _norm_group(module))
        num_samples = dataset.num_samples("train")
        self.total_steps = recipe.total_steps(num_samples)
        self.evaluate_after = _epoch_ends(num_samples, train.batch_size, self.total_steps)
        self.batches = TrainingBatches(dataset, recipe.data, train.batch_size, train.seed)
        self.encoding = dataset.encoding(recipe.data.normalize)
        counts = dataset.class_counts if dataset.info.task == "classification" else None
        self.loss = Loss(train, counts, device())
        self.whole = copy.deepcopy(module)
        self.engine = Engine(
            module=copy.deepcopy(module),
            optimizer=train.optimizer,
            share=self.share,
            zero_stage=recipe.zero_stage,
            precision=train.precision,
            gradient_clip=train.gradient_clip,
        )
        self.distill = distill
        self.teacher = teacher.to(device()).eval() if teacher is not None and distill is not None else None
        self.checkpoints = Checkpoints(checkpoints, train.checkpoint.keep) if checkpoints else None
        self.history = History()
        self.pending: list[torch.Tensor] = []
        self.reported, self.reported_at, self.next_report_at = 0, time.monotonic(), -math.inf

    def run(self) -> FitResult:
        try:
            return self._run()
        finally:
            if self.checkpoints is not None:
                self.checkpoints.close()

    def _run(self) -> FitResult:
        step = self._resume()
        self.engine.module.train()
        stopped = False
        started = self.reported_at = time.monotonic()
        while step < self.total_steps and not stopped:
            self._step(step)
            step += 1
            epoch_end = step in self.evaluate_after
            due = self.checkpoints is not None and step % self.train.checkpoint.every_steps == 0
            if epoch_end or due or step % SYNC_EVERY_STEPS == 0 or step == self.total_steps:
                stopped = self._sync(step)
            if epoch_end:
                self._evaluate(step)
            if due and step < self.total_steps:
                self.history.productive_s += time.monotonic() - started
                self._save(step)
                started = time.monotonic()
        self.history.productive_s += time.monotonic() - started
        module = None
        if step == self.total_steps:
            module = self.whole
            tensors = {**self.engine.parameters(), **self.engine.buffers()}
            module.load_state_dict({k: v.cpu() for k, v in tensors.items()}, strict=False)
            module.eval()
        self.engine.close()
        return FitResult(module=module, history=self.history, steps=step)

    def _step(self, step: int) -> None:
        """One global batch: forward, backward, update. The sum over samples is divided by the whole batch's weight."""
        context, share = self.context, self.share
        # For layers of the user's own that draw: a function of the place in the run, so that a resume needs no state.
        torch.manual_seed(((self.train.seed * 1_000_003 + step) * 65_537 + context.rank) % 2**63)
        self.engine.set_rate(rate(self.train.schedule, self.train.optimizer.lr, step, self.total_steps))
        weight = self.loss.weight(self.batches.targets(step))
        # DeepSpeed averages over ranks and micro-batches; this turns its average into the sum that we want.
        factor = share.data * share.accumulation / weight
        total = torch.zeros((), device=device())
        for index in range(share.accumulation):
            x, y, ids = self.batches.share(step, context.rank, share.data, index, share.accumulation)
            y = y.to(device())
            self.engine.begin_part(self.train.seed, step, ids)
            outputs = self.engine.forward(x)
            loss = self.loss(outputs, y)
            total += loss.detach() / weight
            if self.teacher is not None and self.distill is not None:
                loss = self._distilled(loss, x, outputs)
            self.engine.backward_and_step(loss * factor)
        self.engine.end_batch()
        self.pending.append(total)

    def _distilled(self, loss: torch.Tensor, x: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        assert self.teacher is not None
        assert self.distill is not None
        with torch.no_grad():
            taught = self.teacher(self.engine.inputs(x).float())
        away = distillation(outputs, taught, task=self.dataset.info.task, temperature=self.distill.temperature)
        return (1.0 - self.distill.weight) * loss + self.distill.weight * away

    def _sync(self, step: int) -> bool:
        """Sums the losses of the last steps over ranks, and agrees on whether to stop."""
        stop = float(self.context.stop_requested())
        values = torch.stack([*self.pending, torch.tensor(stop, device=device())]).double()
        if self.context.size > 1:
            comm.all_reduce(values)
        *losses, stops = values.tolist()
        self.pending.clear()
        self.history.losses += losses
        if not all(math.isfinite(loss) for loss in losses):
            raise TrainingDiverged(
                f"{self.label}: the loss is {next(x for x in losses if not math.isfinite(x))} within step {step}; "
                "a lower learning rate or a gradient clip may help"
            )
        now = time.monotonic()
        if now >= self.next_report_at:
            self.next_report_at = now + REPORT_EVERY_S
            row = self._row(step, "train", float(np.mean(self.history.losses[self.reported :])), None)
            step_s = (now - self.reported_at) / (step - self.reported)
            self.reported, self.reported_at = step, now
            self.context.report(
                {"event": "step", "label": self.label, "total_steps": self.total_steps, "step_s": step_s, **row}
            )
        return stops > 0

    def _row(self, step: int, split: str, loss: float, metric: float | None) -> dict[str, Any]:
        epoch = step * self.train.batch_size / self.dataset.num_samples("train")
        lr = rate(self.train.schedule, self.train.optimizer.lr, max(0, step - 1), self.total_steps)
        return {
            "epoch": round(epoch, 4),
            "step": step,
            "split": split,
            "loss": loss,
            "metric": metric,
            "lr": lr,
        }

    def _evaluate(self, step: int) -> None:
        outputs = predict_split(self.engine, self.dataset, "validation", self.encoding, self.context)
        targets = self.dataset.targets("validation")
        with torch.no_grad():
            y = torch.tensor(targets, device=device())
            total = self.loss(torch.from_numpy(outputs).to(device()), y).item()
        value = evaluate(self.recipe.metric, outputs, targets)
        since = self.history.epochs[-1]["step"] if self.history.epochs else 0
        trained = float(np.mean(self.history.losses[since:]))
        self.history.epochs += [
            self._row(step, "train", trained, None),
            self._row(step, "validation", total / self.loss.weight(targets), value),
        ]
        self.context.report(
            {
                "event": "epoch",
                "label": self.label,
                "total_steps": self.total_steps,
                **self.history.epochs[-1],
            }
        )

    def _position(self, step: int) -> Position:
        return Position(step, self.train.batch_size, self.train.seed, self.dataset.fingerprint)

    def _save(self, step: int) -> None:
        assert self.checkpoints is not None
        started = time.monotonic()
        self.checkpoints.save(self.engine, self._position(step), self.history.document(), writer=self.context.rank == 0)
        self.history.checkpoint_s += time.monotonic() - started

    def _resume(self) -> int:
        found = self.checkpoints.newest(self._position(0)) if self.checkpoints else None
        if found is None:
            return 0
        document, tensors = found
        sample, _, _ = self.batches.share(0, self.context.rank, self.share.data, 0, self.share.accumulation)
        self.engine.module.train()
        self.engine.restore(
            part(tensors, "param/"),
            part(tensors, "buffer/"),
            part(tensors, "optimizer/"),
            int(str(document["optimizer_steps"])),
            sample,
        )
        history = document["history"]
        assert isinstance(history, dict)
        self.history = History(**history)
        step = self.reported = int(str(document["step"]))
        before = [row for row in self.history.epochs if row["split"] == "validation"]
        self.context.report({"event": "resumed", "label": self.label, "step": step, "epochs": before})
        return step


def _norm_group(module: nn.Module) -> int | None:
    return max((layer.group for layer in module.modules() if isinstance(layer, GROUPED)), default=None)


def _epoch_ends(num_samples: int, batch_size: int, total_steps: int) -> set[int]:
    """The steps after which validation is looked at: where an epoch is complete, and the last."""
    epochs = total_steps * batch_size // num_samples
    return {epoch * num_samples // batch_size for epoch in range(1, epochs + 1)} - {0} | {total_steps}


def predict_split(
    engine: Engine, dataset: Dataset, split: str, encoding: Any, context: Context
) -> npt.NDArray[np.float32]:
    """The model's outputs on a split, (n, outputs), on every rank; each computes its share. Collective."""
    n = dataset.num_samples(split)
    each = -(-n // context.size)
    # Wrapped around, so that all ranks do the same number of forward passes: under ZeRO 3 each is a collective.
    ids = (np.arange(each) + context.rank * each) % n
    parts: list[torch.Tensor] = []
    with engine.evaluating():
        for start in range(0, each, EVALUATION_BATCH):
            x = dataset.encoded(split, ids[start : start + EVALUATION_BATCH], encoding)
            parts.append(engine.module(engine.inputs(torch.from_numpy(x))).float())
    outputs = torch.cat(parts)
    if context.size > 1:
        gathered = [torch.empty_like(outputs) for _ in range(context.size)]
        comm.all_gather(gathered, outputs.contiguous())
        outputs = torch.cat(gathered)
    return outputs[:n].cpu().numpy()
