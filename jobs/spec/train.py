"""`train:`, `layout:`, `resources:` and `retry:`: how the model is trained, and on what."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.layout import MAX_TENSOR, Offload, ParallelLayout
from jobs.section import Section, illegal

LearningRate = Annotated[float, Field(gt=0.0, le=100.0)]
WeightDecay = Annotated[float, Field(ge=0.0, le=10.0)]


class Sgd(Section):
    """Stochastic gradient descent, with L2 regularization by `weight_decay`."""

    name: Literal["sgd"]
    lr: LearningRate = 0.05
    weight_decay: WeightDecay = 0.0
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0.0:
            raise illegal("nesterov needs a momentum above 0", "false", at="nesterov")
        return self


class Adam(Section):
    """Adam (Kingma & Ba 2015), with L2 regularization by `weight_decay`."""

    name: Literal["adam"]
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (
        0.9,
        0.999,
    )
    eps: float = Field(default=1e-8, gt=0.0, le=1.0)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: WeightDecay = 1e-2


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class _Warmup(Section):
    warmup: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps in which the rate rises linearly to its peak."""


class Constant(_Warmup):
    name: Literal["constant"] = "constant"


class StepDecay(_Warmup):
    """Multiplies the rate by `gamma` at each of the `milestones`, shares of the whole run."""

    name: Literal["step"]
    milestones: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _ascending(self) -> "StepDecay":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise illegal("milestones must ascend, each once", at="milestones")
        return self


class Cosine(_Warmup):
    """Cosine annealing to `floor` × peak (Loshchilov & Hutter 2017)."""

    name: Literal["cosine"]
    floor: float = Field(default=0.0, ge=0.0, lt=1.0)


class OneCycle(Section):
    """Up to the peak in the `warmup` share, then down to almost nothing, both by cosine (Smith & Topin 2018)."""

    name: Literal["one_cycle"]
    warmup: float = Field(default=0.3, gt=0.0, lt=1.0)
    start_factor: float = Field(default=0.04, gt=0.0, le=1.0)
    end_factor: float = Field(default=1e-4, ge=0.0, le=1.0)


Schedule = Annotated[Constant | StepDecay | Cosine | OneCycle, Field(discriminator="name")]


class Checkpointing(Section):
    every_steps: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1, le=1000)


class Train(Section):
    steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    epochs: int | None = Field(
        default_factory=lambda train: 10 if train.get("steps") is None else None, ge=1, le=100_000
    )
    """Default: 10, unless `steps` are given."""
    batch_size: int = Field(default=128, ge=1, le=1_048_576)
    """The GLOBAL batch: the layout never changes it."""
    loss: Literal["cross_entropy", "mse", "bce"] = "cross_entropy"
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """balanced: inversely to the class frequencies of the training split; or a weight a class, in label order."""
    optimizer: Optimizer = AdamW(name="adamw")
    schedule: Schedule = Constant()
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    gradient_clip: float | None = Field(default=None, gt=0.0)
    """Largest L2 norm of the whole gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint: Checkpointing = Checkpointing()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator(
        "schedule", mode="before", json_schema_input_type=Schedule | Literal["constant", "step", "cosine", "one_cycle"]
    )
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if self.epochs is not None and self.steps is not None:
            raise illegal("epochs and steps exclude each other", "one of the two", at="steps")
        if self.epochs is None and self.steps is None:
            raise illegal("epochs or steps are needed", "one of the two", at="epochs")
        if self.loss != "cross_entropy" and self.label_smoothing > 0.0:
            raise illegal("label_smoothing goes with the cross_entropy loss", "0.0", at="label_smoothing")
        if self.loss == "mse" and self.class_weights is not None:
            raise illegal("class_weights go with the cross_entropy and bce losses", "null", at="class_weights")
        return self


class Layout(Section):
    """Degrees of parallelism; `layout: auto` lets the planner choose. What goes with what: jobs/layout.py."""

    data: int = Field(default=1, ge=1, le=65_536)
    tensor: int = Field(default=1, ge=1, le=MAX_TENSOR)
    """Workers that divide each layer among them."""
    pipeline: int = Field(default=1, ge=1, le=1024)
    """Stages: consecutive blocks on workers of their own."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    offload: Offload = "none"
    """Keeps the optimizer states, at stage 3 the parameters too, in the machine's memory or on a disk."""
    nvme_path: str | None = Field(default=None, min_length=1)
    """A folder on a fast local disk of each worker, for `offload: nvme`."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples that a worker takes at once; what is left of its share is accumulated. Default: its whole share, and in
    a pipeline a part of it that keeps all stages at work."""

    @model_validator(mode="after")
    def _nvme_has_a_path(self) -> "Layout":
        if self.offload == "nvme" and self.nvme_path is None:
            raise illegal("offload nvme needs a folder on a local disk", "a path", at="nvme_path")
        if self.offload != "nvme" and self.nvme_path is not None:
            raise illegal("nvme_path goes with offload nvme", "null", at="nvme_path")
        return self

    @property
    def parallel(self) -> ParallelLayout:
        return ParallelLayout(self.data, self.tensor, self.pipeline, self.zero_stage, self.offload)


class Resources(Section):
    workers: int | tuple[int, int] = 1
    """How many; or [fewest, most]: the job starts with what there is, goes on with fewer after a loss, and grows."""
    cpus_per_worker: int = Field(default=1, ge=1, le=1024)
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """Accelerators a worker; one worker drives at most one."""
    runtime: Literal["gang", "ray_train"] = "gang"
    """Who starts the workers: a gang, which stays warm and mends itself, or a run of Ray Train. Not in any hash."""
    time_limit_s: int | None = Field(default=None, ge=1, le=31_536_000)
    """In the service's queue: how long an attempt may take. Not in any hash."""

    @model_validator(mode="after")
    def _legal(self) -> "Resources":
        fewest, most = (self.workers, self.workers) if isinstance(self.workers, int) else self.workers
        if not 1 <= fewest <= most <= 65_536:
            raise illegal("the number of workers is out of range", "1 to 65536, or [fewest, most]", at="workers")
        if self.runtime == "ray_train" and fewest != most:
            raise illegal("a run of Ray Train keeps its number of workers", "gang, or a fixed number", at="runtime")
        return self


class Retry(Section):
    max_failures: int = Field(default=3, ge=0, le=1000)
    """How many times a stage goes on after the loss of workers before the job fails."""
    grace_s: float = Field(default=30.0, gt=0.0, le=86_400.0)
    """How long a training that is told to end has for its checkpoint, before its workers are killed."""
    stall_timeout_s: float = Field(default=600.0, gt=0.0, le=86_400.0)
    """A worker whose training makes no progress for so long counts as lost. Longer than any step takes."""
