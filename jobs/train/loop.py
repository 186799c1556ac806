"""The training loop: one for every model, layout and purpose (training, fine-tuning, distillation)."""

import gc
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jobs.context import Context
from jobs.data import Dataset, TrainingBatches
from jobs.errors import SpecError, TrainingDiverged
from jobs.layout import BatchShare, share_batch
from jobs.measure.metrics import evaluate
from jobs.measure.outputs import condense
from jobs.models.invariant import GROUPED
from jobs.requests import Recipe
from jobs.spec.compress import Distill
from jobs.train.buffers import agree_on_buffers
from jobs.train.checkpoint import Checkpoints, Position
from jobs.train.engine import Batch, Engine
from jobs.train.losses import Loss, distillation
from jobs.train.mesh import Mesh, device, seed_generators, warm_up
from jobs.train.pipeline import PipelinedEngine
from jobs.train.schedule import rate

SYNC_EVERY_STEPS = 10
"""Most steps between two looks at the losses: for divergence, and for a wish to stop."""
SYNC_EVERY_S = 1.0
"""Aim for the time between two of them, where steps take long."""
REPORT_EVERY_S = 0.5
"""Least time between two reports of steps: whoever reads them shares the machine with the training."""
BeforeStep = Callable[[nn.Module, int, int], None]
"""(module under training, step, number of steps): changes buffers, such as masks, before a step is taken."""
EVALUATION_BATCH = 512
EVALUATION_VALUES = 1 << 24
"""Outputs that an evaluation holds at once; a language model has a vocabulary of them for each step."""


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
    block_costs: tuple[int, ...] = (),
    before_step: BeforeStep | None = None,
    until_step: int | None = None,
) -> FitResult:
    """Trains `module` over all the workers of the group and returns it whole on each of them.

    Args:
        module: the same on every rank; taken over, and divided as the layout says.
        label: names this training in reports ("train", "recover 1/2").
        checkpoints: a folder that all ranks reach; a training that was broken off goes on from its newest entry.
        until_step: ends there with a checkpoint; schedules stay those of the whole training.
        block_costs: what each block of `module` costs to compute, to balance the stages of a pipeline by.
        teacher: with `distill`, the dense parent whose outputs are learnt from.
        before_step: called on every rank alike. It sees whole parameters in a layout without tensor peers, stages of
            a pipeline, or ZeRO 3.

    Raises:
        TrainingDiverged: a loss became NaN or infinite.
        SpecError: the batch does not divide over the workers.
    """
    warm_up(context)
    if context.size > 1:
        gc.collect()  # what trainings before have left: DeepSpeed's engines are cycles, and hold process groups
    options = (label, checkpoints, teacher, distill, block_costs, before_step)
    training = _Training(module, dataset, recipe, context, *options)
    training.end = training.total_steps if until_step is None else min(until_step, training.total_steps)
    return training.run()


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
        block_costs: tuple[int, ...],
        before_step: BeforeStep | None,
    ) -> None:
        train, layout = recipe.train, recipe.layout
        if layout.size != context.size:
            raise SpecError.at(
                "layout", f"a layout of {layout.size} workers for a group of {context.size}", vars(layout)
            )
        self.recipe, self.train, self.context, self.label = recipe, train, context, label
        self.dataset = dataset
        self.before_step = before_step
        self.share = share_batch(
            train.batch_size, layout.data, recipe.micro_batch, _norm_group(module), layout.pipeline
        )
        num_samples = dataset.num_samples("train")
        self.total_steps = self.end = recipe.total_steps(num_samples)
        self.evaluate_after = recipe.evaluate_after(num_samples)
        self.batches = TrainingBatches(dataset, recipe.data, train.batch_size, train.seed)
        self.encoding = dataset.encoding(recipe.data.normalize)
        counts = dataset.class_counts if dataset.info.task == "classification" else None
        self.loss = Loss(train, counts, device())
        self.distill = distill
        self.teacher = teacher.to(device()).eval() if teacher is not None and distill is not None else None
        self.mesh = Mesh(layout, context.rank)
        self.engine = _engine(module, recipe, self.share, self.mesh, block_costs)
        keep = train.checkpoint.keep
        self.checkpoints = Checkpoints(checkpoints, keep, self.mesh, self._written) if checkpoints else None
        self.history = History()
        self.pending: list[torch.Tensor] = []
        self.reported, self.reported_at, self.next_report_at = 0, time.monotonic(), -math.inf
        self.synced, self.synced_at, self.sync_at = 0, time.monotonic(), SYNC_EVERY_STEPS
        self.saved = -1

    def run(self) -> FitResult:
        try:
            result = self._run()
            if self.checkpoints is not None:
                self.checkpoints.close()
        except BaseException:
            if self.checkpoints is not None:
                self.checkpoints.close(abandon=True)
            with suppress(RuntimeError):  # of a peer that is gone: what counts is the error that led here
                self._end()
            raise
        self._end()
        return result

    def _end(self) -> None:
        """Leaves the process as it was, so that it can train again, in another group if need be."""
        self.engine.close()
        self.mesh.close()

    def _run(self) -> FitResult:
        step = self.synced = self._resume()
        self.sync_at = step + SYNC_EVERY_STEPS
        self.engine.module.train()
        stopped = False
        started = self.reported_at = self.synced_at = time.monotonic()
        while step < self.end and not stopped:
            self._step(step)
            step += 1
            epoch_end = step in self.evaluate_after
            due = self.checkpoints is not None and step % self.train.checkpoint.every_steps == 0
            if epoch_end or due or step >= self.sync_at or step == self.end:
                stopped = self._sync(step)
            if epoch_end or due or stopped or step == self.end:
                # What is evaluated or stored is one model. Checkpoints may lie anywhere, and change nothing.
                agree_on_buffers(self.engine.module, self.mesh, others=epoch_end or step == self.total_steps)
            if epoch_end:
                self._evaluate(step)
            if (due or stopped or step == self.end) and step < self.total_steps:
                self.history.productive_s += time.monotonic() - started
                self._save(step)
                started = time.monotonic()
        self.history.productive_s += time.monotonic() - started
        module = self.engine.whole().eval() if step == self.total_steps else None
        return FitResult(module=module, history=self.history, steps=step)

    def _step(self, step: int) -> None:
        """One global batch: forward, backward, update. The sum over samples is divided by the whole batch's weight."""
        share, place = self.share, self.mesh.coordinate
        # For layers of the user's own that draw: a function of the place in the run, so that a resume needs no state.
        seed_generators(((self.train.seed * 1_000_003 + step) * 65_537 + place.data) % 2**63)
        if self.before_step is not None:
            self.before_step(self.engine.module, step, self.total_steps)
        self.engine.set_rate(rate(self.train.schedule, self.train.optimizer.lr, step, self.total_steps))
        weight = self.loss.weight(self.batches.targets(step))
        # DeepSpeed averages over ranks and micro-batches; this turns its average into the sum that we want.
        factor = share.data * share.accumulation / weight
        total = torch.zeros((), device=device())

        def criterion(outputs: torch.Tensor, y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
            loss = self.loss(outputs, y)
            total.add_(loss.detach() / weight)
            if self.teacher is not None and self.distill is not None:
                loss = self._distilled(loss, x, outputs, y)
            return loss * factor

        self.engine.train_batch(self._batch(step), criterion)
        # Tensor peers have the same loss, and only the last stage has any.
        self.pending.append(total if self.mesh.answers else torch.zeros_like(total))

    def _batch(self, step: int) -> Batch:
        place, share = self.mesh.coordinate.data, self.share

        def part(index: int) -> Any:
            found = self.batches.share(step, place, share.data, index, share.accumulation)
            self.context.beat()  # a rank that is stuck over its data has beaten less often than those that wait for it
            return found

        self.context.beat()
        return Batch(
            self.train.seed,
            step,
            part=part,
            ids=lambda index: self.batches.ids(step, place, share.data, index, share.accumulation),
        )

    def _distilled(
        self, loss: torch.Tensor, x: torch.Tensor | None, outputs: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        assert self.teacher is not None
        assert self.distill is not None
        assert x is not None
        with torch.no_grad():
            taught = self.teacher(x.float() if x.is_floating_point() else x)
        away = distillation(outputs, taught, y, task=self.dataset.info.task, temperature=self.distill.temperature)
        return (1.0 - self.distill.weight) * loss + self.distill.weight * away

    def _sync(self, step: int) -> bool:
        """Sums the losses of the last steps over ranks, and agrees on whether to stop."""
        stop = float(self.context.stop_requested())
        step_s = (time.monotonic() - self.synced_at) / max(1, step - self.synced)
        agreed = [torch.tensor(value, device=device()) for value in (step_s, stop)]
        values = torch.stack([*self.pending, *agreed]).double()
        *losses, step_s, stops = self.mesh.sum(values).tolist()
        self.pending.clear()
        # The same on all ranks, as all of them must look at the same step.
        steps = int(SYNC_EVERY_S * self.mesh.layout.size / max(step_s, 1e-9))
        self.synced, self.synced_at, self.sync_at = step, time.monotonic(), step + min(max(1, steps), SYNC_EVERY_STEPS)
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
        outputs = self._predict("validation")
        targets = self.dataset.targets("validation")
        loss = self.loss.from_condensed(outputs, targets)
        value = evaluate(self.recipe.metric, outputs, targets)
        since = self.history.epochs[-1]["step"] if self.history.epochs else 0
        trained = float(np.mean(self.history.losses[since:]))
        self.history.epochs += [
            self._row(step, "train", trained, None),
            self._row(step, "validation", loss, value),
        ]
        self.context.report(
            {
                "event": "epoch",
                "label": self.label,
                "total_steps": self.total_steps,
                **self.history.epochs[-1],
            }
        )

    def _predict(self, split: str) -> npt.NDArray[np.float32]:
        """The model's outputs on a split, condensed: (n, columns), on every rank. Collective.

        Data ranks compute a share each, all of them equally many batches of one shape: each is a collective.
        """
        n, signature = self.dataset.num_samples(split), self.dataset.info.signature
        each = -(-n // self.share.data)
        values = signature.outputs * (signature.input_shape[0] if signature.per_step else 1)
        size = max(1, min(EVALUATION_BATCH, each, EVALUATION_VALUES // values))
        ids = (np.arange(-(-each // size) * size) + self.mesh.coordinate.data * each) % n
        chunks = ids.reshape(-1, size)
        targets = self.dataset.targets(split)
        samples = (torch.from_numpy(self.dataset.encoded(split, chunk, self.encoding)) for chunk in chunks)
        found = np.zeros((n, 3 if signature.per_step else signature.outputs), np.float32)
        with self.engine.evaluating():
            for chunk, outputs in zip(chunks, self.engine.outputs(samples), strict=True):
                self.context.beat()
                if outputs is not None and self.mesh.answers:
                    found[chunk] = condense(outputs.cpu().numpy(), targets[chunk])
        if self.mesh.layout.size == 1:
            return found
        # A sample that a share wraps around to is computed twice: only its own share's is taken.
        mine = np.arange(n) // each == self.mesh.coordinate.data
        found[~mine] = 0.0
        return self.mesh.sum(torch.from_numpy(found).to(device())).cpu().numpy()

    def _position(self, step: int) -> Position:
        return Position(step, self.train.batch_size, self.train.seed, self.dataset.fingerprint)

    def _save(self, step: int) -> None:
        if self.checkpoints is None or step == self.saved:
            return
        started = time.monotonic()
        self.checkpoints.save(self.engine, self._position(step), self.history.document())
        self.saved = step
        self.history.checkpoint_s += time.monotonic() - started

    def _written(self, step: int, seconds: float) -> None:
        self.context.report({"event": "checkpoint", "label": self.label, "step": step, "seconds": seconds})

    def _resume(self) -> int:
        if self.checkpoints is None:
            return 0
        self.checkpoints.remove_remains()
        found = self.checkpoints.newest(self._position(0), self.engine.shapes())
        if found is None:
            return 0
        self.engine.module.train()
        self.engine.restore(found, found.document["scalars"], self._batch(0))
        self.history = History(**found.document["history"])
        step = self.reported = int(found.document["step"])
        before = [row for row in self.history.epochs if row["split"] == "validation"]
        self.context.report({"event": "resumed", "label": self.label, "step": step, "epochs": before})
        return step


def _engine(module: nn.Module, recipe: Recipe, share: BatchShare, mesh: Mesh, block_costs: tuple[int, ...]) -> Engine:
    options: dict[str, Any] = {
        "precision": recipe.train.precision,
        "gradient_clip": recipe.train.gradient_clip,
        "nvme_path": recipe.nvme_path,
    }
    if recipe.layout.pipeline > 1:
        return PipelinedEngine(module, recipe.train.optimizer, share, mesh, block_costs=block_costs, **options)
    return Engine(module, recipe.train.optimizer, share, mesh, **options)


def _norm_group(module: nn.Module) -> int | None:
    return max((layer.group for layer in module.modules() if isinstance(layer, GROUPED)), default=None)
