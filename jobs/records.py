"""What was decided, made and measured: every record can be written to JSON and read back."""

from typing import Any, Literal

from jobs.section import Record


class DatasetInfo(Record):
    """What is known of a source without reading all of it; what a model must fit."""

    task: Literal["classification", "regression"]
    input_shape: tuple[int, ...]
    """Of one encoded sample: (channels, height, width) for images, (features,) for tables and vectors."""
    outputs: int
    """Values the model predicts: number of classes (1 under bce), or 1 for regression."""
    num_samples: dict[str, int]
    """train, validation, test."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty for regression."""
    image: bool = False


class FileRecord(Record):
    path: str
    bytes: int
    sha256: str


class StageManifest(Record):
    """A complete stage. It is written last: its presence means that everything it names is there."""

    stage: str
    hash: str
    schema_version: int
    inputs: dict[str, str]
    config: dict[str, Any]
    files: tuple[FileRecord, ...]
    result: dict[str, Any]
    seconds: float
    versions: dict[str, str]
    finished_at: str


class Interval(Record):
    """A figure with its 95 % confidence interval."""

    name: str
    value: float
    ci95: tuple[float, float]
    n: int
    split: str


class Delta(Record):
    """The difference to the parent, paired sample by sample; positive is better, whatever the metric."""

    value: float
    ci95: tuple[float, float]


class Latency(Record):
    p50: float
    p90: float
    n: int


class Measurement(Record):
    """What a model file was measured to be, through the runtime that will serve it, on this machine."""

    metric: Interval
    metric_delta: Delta | None
    """Against the dense parent; None for the dense parent itself."""
    details: dict[str, Any]
    """classification: precision, recall, f1 a class, confusion matrix; regression: rmse, mae, r2."""
    bytes: int
    bytes_zstd: int
    params: int
    nonzero_params: int
    macs: int
    latency_ms: dict[str, Latency]
    """`batch_1` and `batch_64`, interleaved with the dense parent."""
    parity_max_abs_diff: float
    """Largest difference of the file's outputs to those of the model it was exported from."""


class Artifact(Record):
    name: str
    parent: str | None
    stage: Literal["dense", "prune", "quantize"]
    recipe: dict[str, Any]
    files: tuple[FileRecord, ...]
    measurement: Measurement
    test_metric: Interval | None = None
    pareto: bool = False
    fits_budget: bool = True
    verdict: str = ""


TrialState = Literal["completed", "pruned", "failed"]


class Trial(Record):
    """One point of the search space and what became of it."""

    number: int
    phase: Literal["train", "compress", "joint"]
    params: dict[str, Any]
    state: TrialState
    cause: str = ""
    values: dict[str, float]
    """Objectives by name: metric, latency_ms, bytes. Empty unless completed."""
    violation: float = 0.0
    """How far outside the budget; 0 or less is within."""
    curve: tuple[float, ...] = ()
    """The validation metric after each epoch."""
    seconds: float
    steps: int = 0
    epochs: int = 0


class StagePlan(Record):
    name: str
    action: Literal["run", "reuse", "skip"]
    reason: str
    hash: str | None = None


class MemoryEstimate(Record):
    """Bytes a worker holds at the peak of a step (Rajbhandari et al. 2020, section 3)."""

    parameters: int
    gradients: int
    optimizer_states: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer_states + self.activations + self.batch


class LayoutAlternative(Record):
    """A layout that was considered."""

    data: int
    zero_stage: int
    memory_bytes: int
    """Of a worker, at the peak of a step."""
    communication_bytes: int
    """That a worker sends in a step."""
    fits: bool
    reason: str


class Demand(Record):
    """What the job asks of a cluster: a gang of equal workers that start together."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    memory_bytes_per_worker: int


class ModelSummary(Record):
    """A model's sizes as pure integers."""

    blocks: tuple[dict[str, Any], ...]
    params: int
    macs: int
    activations: int
    """Values held for the backward pass, for one sample."""
    layout_invariant: bool
    """Whether every layout gives the same losses; it can't be known of a model with layers of the user's own."""
    norm_group: int | None = None
    """Samples that batch normalization looks at together; a micro-batch must be a multiple of it."""


class JobPlan(Record):
    """A spec with every default resolved; nothing was changed to make it."""

    spec: dict[str, Any]
    dataset: DatasetInfo
    model: ModelSummary
    stages: tuple[StagePlan, ...]
    layout: dict[str, Any]
    alternatives: tuple[LayoutAlternative, ...]
    batch: dict[str, int]
    total_steps: int
    memory: MemoryEstimate
    deepspeed: dict[str, Any]
    demand: Demand
    hashes: dict[str, str]
    warnings: tuple[str, ...]


class Goodput(Record):
    """Where the wall time went, in seconds. ettr = productive / (wall - queued)."""

    wall_s: float
    queued_s: float
    startup_s: float
    productive_s: float
    checkpoint_s: float
    recompute_s: float
    restart_s: float
    restarts: tuple[dict[str, Any], ...]
    ettr: float


class RunReport(Record):
    run_id: str
    name: str
    state: Literal["succeeded", "failed"]
    layout: dict[str, Any]
    model: dict[str, Any]
    dataset: dict[str, Any]
    spec: dict[str, Any]
    stages: tuple[dict[str, Any], ...]
    """name, hash, reused, seconds, in order."""
    curves: dict[str, list[dict[str, Any]]]
    """By training ("train", "recover/pruned", …): {epoch, step, split, loss, metric, lr} rows."""
    search: dict[str, Any] | None
    """trials (all records), completed, pruned, errored, best, pareto, space, objectives; None without a search."""
    artifacts: tuple[Artifact, ...]
    selected: str
    budget: dict[str, Any]
    warnings: tuple[str, ...]
    goodput: Goodput
    environment: dict[str, Any]
