"""What was decided, made and measured: every record can be written to JSON and read back."""

from typing import Any, Literal

from pydantic import Field

from jobs.section import Record


class Signature(Record):
    """What a model takes and gives: all that a model and its data must agree on."""

    kind: Literal["vector", "image", "sequence", "tokens", "codes"]
    """Of one encoded sample:
    vector    float32 (features,)
    image     float32 (channels, height, width)
    sequence  float32 (steps, features + 1): the last feature is 1 where there is a step, and 0 with all others beyond
    tokens    int64 (steps,): 0 beyond the end
    codes     int64 (columns,): 0 for a category that training has not seen
    """
    input_shape: tuple[int, ...]
    outputs: int
    """Values the model predicts: number of classes (1 under bce), 1 for regression, size of the vocabulary."""
    num_codes: tuple[int, ...] = ()
    """How many codes there are, 0 included: of the tokens, or of each column."""
    per_step: bool = False
    """Whether there are outputs for each step: (batch, steps, outputs) rather than (batch, outputs)."""

    @property
    def input_dtype(self) -> Literal["float32", "int64"]:
        return "int64" if self.kind in ("tokens", "codes") else "float32"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of what a model gives for one sample."""
        return (self.input_shape[0], self.outputs) if self.per_step else (self.outputs,)


class DatasetInfo(Signature):
    """What is known of a source without reading all of it; what a model must fit."""

    task: Literal["classification", "regression", "language_model"]
    num_samples: dict[str, int]
    """train, validation, test."""
    classes: tuple[str, ...] = ()
    """Names in label order; empty for regression and language models."""

    @property
    def signature(self) -> Signature:
        return Signature(**{name: getattr(self, name) for name in Signature.model_fields})

    @property
    def image(self) -> bool:
        return self.kind == "image"


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


class Ratio(Record):
    """A latency as a multiple of another one's, paired turn by turn, with its 95 % interval."""

    value: float
    ci95: tuple[float, float]


class Latency(Record):
    p50: float
    p90: float
    p99: float | None = None
    """Where there are 1000 runs or more: of fewer, it would be the luck of a few."""
    n: int
    against: dict[str, Ratio] = Field(default_factory=dict)
    """By name: of the parent and of the dense model."""


class Measurement(Record):
    """What a model file was measured to be, through the runtime that will serve it, on this machine."""

    metric: Interval
    metric_exact: Interval | None = None
    """Where 8-bit products saturate in the runtime's own sessions: the metric in one where they cannot, which is what
    the file means. None where the two do not differ."""
    metric_delta: Delta | None
    """Against the dense parent; None for the dense parent itself."""
    details: dict[str, Any]
    """classification: precision, recall, f1 a class, confusion matrix; regression: rmse, mae, r2;
    language model: perplexity, bits_per_token, accuracy, tokens, samples."""
    bytes: int
    """Of a pack: the archive's; all else is measured through the file that it restores."""
    bytes_zstd: int
    params: int
    nonzero_params: int
    macs: int
    latency_ms: dict[str, Latency]
    """`batch_1`, and `batch_64` unless its outputs are too many; interleaved with the dense parent."""
    parity_max_abs_diff: float
    """Largest difference of the file's outputs to those of the model it was exported from."""


class Artifact(Record):
    name: str
    parent: str | None
    stage: Literal["dense", "prune", "low_rank", "quantize", "pack"]
    recipe: dict[str, Any]
    files: tuple[FileRecord, ...]
    measurement: Measurement
    test_metric: Interval | None = None
    pareto: bool = False
    fits_budget: bool = True
    verdict: str = ""


TrialState = Literal["completed", "pruned", "failed"]


class Segment(Record):
    """A part of a training that changed its values on the way: population-based training."""

    member: int
    """Number of the trial that trained it."""
    params: dict[str, Any]
    until_step: int
    stage: str
    """Hash of the stage that holds its checkpoint, or the model if it is the last."""


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
    lineage: tuple[Segment, ...] = ()
    """Of a member of a population: what its model was trained by, in order. `params` are those of the last."""


class StagePlan(Record):
    name: str
    action: Literal["run", "reuse", "skip"]
    reason: str
    hash: str | None = None


class MemoryEstimate(Record):
    """Bytes of tensors that the worker with the most of them holds: at the peak of a step, and between two steps.

    The parts add up to the peak; they need not all be at their largest at once, so it is an upper bound.
    """

    parameters: int
    gradients: int
    optimizer_states: int
    """With ZeRO's fp32 copy of the weights, if it keeps one."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    batch: int
    """Samples and targets."""
    buffers: int
    """Copies that DeepSpeed makes to communicate and to update."""
    offloaded: int
    """Of all these, what is not on the device but in the machine's memory or on a disk."""
    resident: int
    """What stays between steps: gradients (below ZeRO 3), activations, the batch and most buffers are gone by then."""

    @property
    def total(self) -> int:
        """At the peak, wherever it lies."""
        states = self.parameters + self.gradients + self.optimizer_states
        return states + self.activations + self.batch + self.buffers

    @property
    def on_device(self) -> int:
        """At the peak, without what is offloaded."""
        return self.total - self.offloaded


class LayoutAlternative(Record):
    """A layout that was considered."""

    data: int
    tensor: int
    pipeline: int
    zero_stage: int
    offload: str
    memory_bytes: int
    """Of the worker with the most, at the peak of a step; of its device alone, where it has one."""
    communication_bytes: int
    """That the worker with the most sends in a step."""
    relative_work: float
    """Time of a step without communication, relative to an even division of the work: stages that wait or are not
    alike, and what tensor peers compute twice."""
    fits: bool
    reason: str


class Demand(Record):
    """What the job asks of a cluster: a gang of equal workers that start together."""

    workers: int
    fewest_workers: int
    """It can do with so few; fewer than `workers` for an elastic job."""
    cpus_per_worker: int
    gpus_per_worker: int
    memory_bytes_per_worker: int


class BlockSummary(Record):
    """A block's sizes as pure integers: layers that stay together in one stage of a pipeline."""

    name: str
    layers: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = ()
    params: int
    split_params: int = 0
    """Of these, what tensor parallelism divides."""
    macs: int = 0
    """Multiply-accumulates of the forward pass, for one sample."""
    split_macs: int = 0
    activations: int = 0
    """Values held for the backward pass, for one sample."""
    split_activations: int = 0
    tensor_values: int = 0
    """Values, for one sample, that tensor peers sum or gather in the forward pass; as many again in the backward."""
    tensor_sums: int = 0
    """How many such sums there are."""


class ModelSummary(Record):
    """A model's sizes as pure integers."""

    blocks: tuple[BlockSummary, ...]
    """In order; what a block puts out is what the next one takes. One alone: the model can't be a pipeline."""
    params: int
    """Tied ones counted once."""
    macs: int
    activations: int
    layout_invariant: bool
    """Whether every layout gives the same losses; it can't be known of a model with layers of the user's own."""
    norm_group: int | None = None
    """Samples that batch normalization looks at together; a micro-batch must be a multiple of it."""
    tensor_width: int = 1
    """Tensor degrees must divide it: the greatest common divisor of all widths that are split."""
    no_tensor: str = ""
    """Why it takes no tensor parallelism; empty if it does."""
    no_pipeline: str = ""
    """Why it takes no pipeline; empty if it does."""
    tied_params: int = 0
    """Parameters of the first block that the last one uses too: a pipeline holds them twice."""


class PlannedScheme(Record):
    """A scheme of quantization, in the order that suits the host that artifacts are for."""

    name: str
    reason: str


class JobPlan(Record):
    """A spec with every default resolved; nothing was changed to make it."""

    spec: dict[str, Any]
    dataset: DatasetInfo
    model: ModelSummary
    stages: tuple[StagePlan, ...]
    layout: dict[str, Any]
    smaller_layouts: tuple[dict[str, Any], ...] = ()
    """Of an elastic job: its layouts for fewer workers, most workers first."""
    alternatives: tuple[LayoutAlternative, ...]
    batch: dict[str, int]
    total_steps: int
    memory: MemoryEstimate
    deepspeed: dict[str, Any]
    demand: Demand
    host: str = ""
    """What the host can do that artifacts are for: "here: avx512, exact int8"."""
    schemes: tuple[PlannedScheme, ...] = ()
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
