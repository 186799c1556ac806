"""Predictions for new samples, from an artifact alone: in this process, or spread over the workers of a gang.

Spread over samples (data-parallel), each worker runs the artifact's ONNX file on its share. A model that is too large
for a worker is divided instead, by tensor or pipeline parallelism or both: then each reads its part of the safetensors
file, and torch computes. The samples are encoded here, once, and workers map the file that they lie in.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs.context import LocalContext, WorkRef
from jobs.data import Encoding, TextEncoding, read_samples
from jobs.data.raw import Raw, take
from jobs.errors import ArtifactError, SpecError
from jobs.exchange import Exchange
from jobs.export.card import read_card
from jobs.export.contents import Serving
from jobs.layout import ParallelLayout
from jobs.requests import DividedPredictRequest, PredictRequest
from jobs.storage import storage_errors
from orchestrator.division import block_costs_for
from orchestrator.predicted import Predictions
from orchestrator.unpacked import model_folder

if TYPE_CHECKING:
    from cluster.workers import WorkerGroup

MAX_FAILURES = 2
"""How many lost workers a prediction outlasts; it then starts again."""
_STOP_GRACE_S = 5.0
_ENCODED_AT_ONCE = 4096

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Spread:
    """How predictions are spread.

    Attributes:
        workers: how many; default: as many as the degrees ask for.
        tensor: workers that divide each layer among them.
        pipeline: workers that divide the blocks among them.
        address: of a running Ray cluster; default: this machine.
    """

    workers: int | None = None
    tensor: int = 1
    pipeline: int = 1
    address: str | None = None

    @property
    def layout(self) -> ParallelLayout:
        """Raises SpecError for degrees and workers that do not go together."""
        for option, value in (("--workers", self.workers), ("--tensor", self.tensor), ("--pipeline", self.pipeline)):
            if value is not None and value < 1:
                raise SpecError.at(option, "somebody has to do the work", value, "at least 1")
        degrees = self.tensor * self.pipeline
        data, rest = divmod(self.workers or degrees, degrees)
        if rest or not data:
            what = f"tensor × pipeline = {self.tensor} × {self.pipeline} workers hold a model together"
            raise SpecError.at("--workers", what, self.workers, f"a multiple of {degrees}")
        return ParallelLayout(data=data, tensor=self.tensor, pipeline=self.pipeline)


HERE = Spread()


def predict_with(
    folder: Path,
    data: Path,
    spread: Spread = HERE,
    *,
    scratch: Path | None = None,
    on_event: OnEvent | None = None,
    group: "WorkerGroup | None" = None,
) -> Predictions:
    """Predictions for new samples, in their order: iterate over them for one dictionary each.

    Args:
        folder: the artifact's; on a cluster of several machines one that all of them reach.
        data: see `read_samples`.
        scratch: a folder in which encoded samples, outputs and what a pack restores lie meanwhile; the same holds for
            it. Default: the system's for temporary files, or with an address the working directory.
        on_event: gets events: {event: connected | workers_started | predicted, …}.
        group: workers that are there already, as many as the layout has, with process groups if it divides the model.

    Raises:
        SpecError: the artifact can't be spread so, or this cluster never holds so many workers.
        ArtifactError: the artifact is damaged.
        DataError: the data cannot be read as what the model takes.
        ClusterUnreachable: no cluster answers at the address.
    """
    layout = spread.layout
    card = read_card(folder)
    served = Serving.of(card, folder)
    encoding, task = served.encoding, served.task
    place = _place(scratch, spread.address)
    tell = on_event or _ignore
    with model_folder(folder, place) as files:
        costs = block_costs_for(files, card, layout) if _divides(layout) else ()
        raw = read_samples(data, encoding)
        last_code, prompts = None, None
        if task == "language_model":
            if not isinstance(encoding, TextEncoding) or not isinstance(raw, np.ndarray):
                raise ArtifactError(f"{folder} has a language model without a tokenizer")
            last_code, prompts = encoding.last_code, (encoding, raw)
        if len(raw) == 0 or (layout.size == 1 and spread.address is None and group is None):
            outputs = _here(files, encoding.encode(raw), last_code, tell)
        else:
            files = files.absolute()
            with _scratch(place) as shared:
                samples, meeting = shared / "samples.npy", shared / "shares"
                _write_samples(samples, raw, encoding)
                request: PredictRequest | DividedPredictRequest
                if _divides(layout):
                    request = DividedPredictRequest(files, layout, costs, samples, last_code, meeting)
                else:
                    request = PredictRequest(files / "model.onnx", samples, last_code, meeting)
                with _workers(spread, layout, tell, group) as workers:
                    outputs = _gathered(workers, request, layout, tell)
    if not np.isfinite(outputs).all():
        raise ArtifactError(f"{folder} gives outputs that are not finite")
    if task == "classification" and len(served.classes) != max(2, outputs.shape[1]):
        raise ArtifactError(f"{folder} names {len(served.classes)} classes for {outputs.shape[1]} outputs")
    return Predictions(outputs, task, served.classes, prompts)


def _divides(layout: ParallelLayout) -> bool:
    return layout.tensor * layout.pipeline > 1


def _here(folder: Path, x: npt.NDArray[Any], last_code: int | None, tell: OnEvent) -> npt.NDArray[Any]:
    from jobs.measure.session import ModelFile
    from jobs.measure.work import kept_outputs

    return kept_outputs(LocalContext(on_report=tell), ModelFile(folder / "model.onnx"), x, last_code)


def _gathered(
    workers: "WorkerGroup", request: PredictRequest | DividedPredictRequest, layout: ParallelLayout, tell: OnEvent
) -> npt.NDArray[Any]:
    from cluster.workers import run_work

    divided = isinstance(request, DividedPredictRequest)
    run_work(
        workers,
        WorkRef("jobs.train.inference:predict" if divided else "jobs.measure.work:predict"),
        request,
        on_report=tell,
        max_failures=MAX_FAILURES,
        on_restart=lambda loss, count: tell({"event": "restart", "stage": "predict", "cause": str(loss)}),
        stop_grace_s=_STOP_GRACE_S,
    )
    return Exchange(request.folder, layout.data).arrays("outputs")


@contextmanager
def _workers(
    spread: Spread, layout: ParallelLayout, tell: OnEvent, group: "WorkerGroup | None"
) -> Iterator["WorkerGroup"]:
    """A warm gang on a cluster, for as long as it is needed."""
    if group is not None:
        yield group
        return
    from cluster.connect import connect
    from cluster.gang import Gang

    started = time.monotonic()
    with connect(spread.address, working_dir=Path.cwd() if spread.address is None else None):
        tell({"event": "connected", "seconds": time.monotonic() - started})
        started = time.monotonic()
        warm_up = WorkRef("jobs.train.mesh:warm_up") if _divides(layout) else None
        with _as_option(), Gang(layout.size, warm_up=warm_up) as gang:
            tell({"event": "workers_started", "workers": gang.size, "seconds": time.monotonic() - started})
            yield gang


@contextmanager
def _as_option() -> Iterator[None]:
    """Lets an error speak of the command's option, where a job's spec would be wrong."""
    try:
        yield
    except SpecError as error:
        problem = error.problems[0]
        if problem.path != "resources.workers":
            raise
        raise SpecError.at("--workers", problem.message, problem.value, problem.allowed) from None


def _place(folder: Path | None, address: str | None) -> Path | None:
    """Where temporary folders lie; None: where the system has its own."""
    return folder or (None if address is None else Path.cwd())


@contextmanager
def _scratch(place: Path | None) -> Iterator[Path]:
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".thresher-predict-", dir=place) as name:
        yield Path(name).absolute()


def _write_samples(path: Path, raw: Raw, encoding: Encoding) -> None:
    """Encodes samples into a .npy file, some at a time: encoded ones may take several times the memory."""
    with storage_errors(path), path.open("wb") as file:
        for first in range(0, len(raw), _ENCODED_AT_ONCE):
            x = np.ascontiguousarray(
                encoding.encode(take(raw, np.arange(first, min(first + _ENCODED_AT_ONCE, len(raw)))))
            )
            if first == 0:
                shape = (len(raw), *x.shape[1:])
                header = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(x.data)


def _ignore(event: dict[str, Any]) -> None:
    pass
