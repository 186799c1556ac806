"""What a stage asks of its workers: plain records that travel to them, so whoever asks need not import torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jobs.errors import SpecError
from jobs.layout import ParallelLayout
from jobs.spec.compress import LowRank, Pack, Prune, Qat, StaticSearch
from jobs.spec.data import Data
from jobs.spec.train import Train

PACK_NAME = "model.thpack"


@dataclass(frozen=True)
class Recipe:
    """What one training does, apart from the model and the data themselves."""

    train: Train
    data: Data
    metric: str
    layout: ParallelLayout = field(default_factory=ParallelLayout)
    micro_batch: int | None = None
    nvme_path: str | None = None
    smaller_layouts: tuple[ParallelLayout, ...] = ()
    """Of an elastic job: the layouts for other numbers of workers."""

    def of_size(self, workers: int) -> "Recipe":
        """With the layout for a group of so many workers. Raises SpecError if there is none."""
        for layout in (self.layout, *self.smaller_layouts):
            if layout.size == workers:
                return replace(self, layout=layout)
        raise SpecError.at(
            "layout", f"a layout of {self.layout.size} workers for a group of {workers}", vars(self.layout)
        )

    def total_steps(self, num_samples: int) -> int:
        """Number of optimizer steps; only the run's last incomplete batch is dropped."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return self.train.epochs * num_samples // self.train.batch_size

    def evaluate_after(self, num_samples: int) -> set[int]:
        """The steps after which validation is looked at: where an epoch is complete, and the last."""
        steps, batch = self.total_steps(num_samples), self.train.batch_size
        epochs = steps * batch // num_samples
        return {epoch * num_samples // batch for epoch in range(1, epochs + 1)} - {0} | {steps}


@dataclass(frozen=True)
class TrainRequest:
    """
    Attributes:
        model: the spec's `model:` section, as JSON.
        dataset: folder of the prepared data set.
        folder: where to write; a training broken off there is taken up again.
        until_step: where to end, with the checkpoint as the result; None: at the end, with the model.
        start: a folder with the checkpoint to go on from, which may be of other rates; None: from scratch.
    """

    model: dict[str, Any]
    recipe: Recipe
    dataset: Path
    folder: Path
    until_step: int | None = None
    start: Path | None = None


@dataclass(frozen=True)
class PruneRequest:
    """
    Attributes:
        parent: folder of the dense model.
        recipe: how the dense model was trained; recovery follows it with its own epochs and rate.
        folder: where to write; pruning that was broken off goes on after the last step that was complete.
    """

    prune: Prune
    parent: Path
    recipe: Recipe
    dataset: Path
    folder: Path


@dataclass(frozen=True)
class LowRankRequest:
    """
    Attributes:
        parent: folder of the dense model, or of the pruned one.
        recipe: as in PruneRequest.
        folder: where to write; a recovery that was broken off there is taken up again.
    """

    low_rank: LowRank
    parent: Path
    recipe: Recipe
    dataset: Path
    folder: Path


@dataclass(frozen=True)
class ExportRequest:
    model: Path
    """Folder of the stored model."""
    dataset: Path
    normalize: str
    folder: Path
    metadata: dict[str, str]


@dataclass(frozen=True)
class VariantSearch:
    """How int8_static looks for its variant.

    Attributes:
        full_range: whether 8-bit weights cannot saturate, neither here nor on the target.
        seed: draws the training samples to compare on.
    """

    limits: StaticSearch
    metric: str
    pick: Literal["smallest", "fastest", "most_accurate"]
    allowed_drop: float
    full_range: bool
    seed: int


@dataclass(frozen=True)
class QuantizeRequest:
    source: Path
    """The float ONNX file."""
    scheme: str
    dataset: Path
    normalize: str
    folder: Path
    search: VariantSearch | None = None
    """For int8_static."""


@dataclass(frozen=True)
class QatRequest:
    """
    Attributes:
        model: folder of the stored model.
        source: its float ONNX file.
        recipe: how the model was trained; fine-tuning follows it with its own epochs and rate.
        folder: where to write; a training broken off there is taken up again.
    """

    qat: Qat
    model: Path
    source: Path
    recipe: Recipe
    dataset: Path
    folder: Path


@dataclass(frozen=True)
class ShareRequest:
    """As a PruneRequest, for a model with few weights of few values."""

    pack: Pack
    parent: Path
    recipe: Recipe
    dataset: Path
    folder: Path


@dataclass(frozen=True)
class PackRequest:
    """
    Attributes:
        model: folder of the stored model.
        onnx: the file exported from it.
        folder: where to write the pack, and what it restores.
    """

    model: Path
    onnx: Path
    folder: Path


@dataclass(frozen=True)
class CandidateFile:
    """A file to measure.

    Attributes:
        float_file: the float ONNX file that it is, or that it was quantized from; its operations are counted.
        parity: largest difference to the outputs of what it was made from.
        parent: name of the candidate that it was made from.
        archive: the pack that restores `file`; its size is then the one that counts.
    """

    name: str
    file: Path
    float_file: Path
    parity: float
    parent: str | None = None
    archive: Path | None = None


@dataclass(frozen=True)
class MeasureRequest:
    candidates: tuple[CandidateFile, ...]
    dense: str
    dataset: Path
    normalize: str
    metric: str
    split: str
    latency_s: float
    """Seconds of timing for each file."""
    folder: Path
    """Where the workers' shares of the outputs meet; a new one for each attempt."""


@dataclass(frozen=True)
class ScoreRequest:
    files: dict[str, Path]
    dataset: Path
    normalize: str
    metric: str
    split: str
    folder: Path
    """As of MeasureRequest."""


@dataclass(frozen=True)
class PredictRequest:
    """
    Attributes:
        file: the ONNX file.
        samples: a .npy file of encoded samples (n, *input_shape).
        last_code: of a language model, the last code that is a token: each text's next token and its probability are
            kept of the outputs, (n, 2). None: all outputs are kept.
        folder: where the workers' shares meet, each under `outputs`; a new one for each attempt.
    """

    file: Path
    samples: Path
    last_code: int | None
    folder: Path


@dataclass(frozen=True)
class DividedPredictRequest:
    """As PredictRequest, with a model that is divided over the workers.

    Attributes:
        model: the folder of the stored model.
        block_costs: of its blocks; the stages of a pipeline are balanced by them.
    """

    model: Path
    layout: ParallelLayout
    block_costs: tuple[int, ...]
    samples: Path
    last_code: int | None
    folder: Path
