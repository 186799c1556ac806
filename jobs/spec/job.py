"""JobSpec: everything one job is asked for."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.section import Section, illegal, not_supported_yet
from jobs.spec.compress import Compress, Export
from jobs.spec.data import Data
from jobs.spec.model import FactoryModel, Model
from jobs.spec.search import Search
from jobs.spec.train import Layout, Resources, Retry, Train

Metric = Literal["accuracy", "f1_macro", "roc_auc", "log_loss", "perplexity", "rmse", "mae"]
CLASSIFICATION_METRICS = ("accuracy", "f1_macro", "roc_auc", "log_loss")
REGRESSION_METRICS = ("rmse", "mae")
HIGHER_IS_BETTER = ("accuracy", "f1_macro", "roc_auc")


def _default_metric(job: dict[str, Any]) -> Metric:
    """Called after `train` is validated, and without it where it is wrong."""
    return "rmse" if "train" in job and job["train"].loss == "mse" else "accuracy"


class Code(Section):
    """The user's own modules: their digest is part of every stage's hash, and they travel to the workers."""

    working_dir: str = "."
    requirements: tuple[str, ...] = ()


class JobSpec(Section):
    """A job: data, model, training, and what to do with the winner. See docs/spec.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    project: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    priority: int = Field(default=0, ge=-100, le=100)
    data: Data
    code: Code = Code()
    model: Model
    train: Train = Train()
    metric: Metric = Field(default_factory=_default_metric)
    """Default: accuracy; rmse under mse."""
    layout: Literal["auto"] | Layout = "auto"
    resources: Resources = Resources()
    retry: Retry = Retry()
    search: Search | None = None
    compress: Compress = Compress()
    export: Export = Export()

    @field_validator("metric")
    @classmethod
    def _later(cls, value: str) -> str:
        if value == "perplexity":
            raise not_supported_yet("metric perplexity")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "JobSpec":
        allowed = REGRESSION_METRICS if self.train.loss == "mse" else CLASSIFICATION_METRICS
        if self.metric not in allowed:
            raise illegal(
                f"metric {self.metric} does not go with the loss {self.train.loss}",
                ", ".join(allowed),
                at="metric",
            )
        if self.search is not None:
            direction = self.search.objectives.metric
            if direction is not None and direction != self.metric_direction:
                raise illegal(
                    f"search.objectives.metric is {direction}, but {self.metric} gets better towards "
                    f"{self.metric_direction}",
                    self.metric_direction,
                    at="search.objectives.metric",
                )
        if isinstance(self.layout, Layout):
            if self.train.precision == "bf16" and self.layout.zero_stage == 0:
                raise illegal(
                    "bf16 keeps its fp32 copy of the weights in ZeRO's optimizer", "1, 2, 3", at="layout.zero_stage"
                )
            workers = self.resources.workers
            if self.layout.data != workers:
                raise illegal(
                    f"layout.data × tensor × pipeline = {self.layout.data}, but resources.workers = {workers}",
                    f"layout.data = {workers}",
                    at="layout.data",
                )
        return self

    @property
    def task(self) -> Literal["classification", "regression"]:
        return "regression" if self.train.loss == "mse" else "classification"

    @property
    def metric_direction(self) -> Literal["min", "max"]:
        return "max" if self.metric in HIGHER_IS_BETTER else "min"

    @property
    def num_workers(self) -> int:
        assert isinstance(self.resources.workers, int)
        return self.resources.workers

    @property
    def compresses_by_search(self) -> bool:
        """Whether the search sets pruning keys, which turns pruning on."""
        return self.search is not None and any(key.startswith("compress.prune.") for key in self.search.space)

    @property
    def uses_own_code(self) -> bool:
        return isinstance(self.model, FactoryModel)

    def document(self) -> dict[str, Any]:
        """The spec as it was asked for: JSON, without the defaults that were not written down."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    def resolved(self) -> dict[str, Any]:
        """The spec as it is understood: JSON, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> "JobSpec":
        """Reads a YAML or JSON file; `overrides` are `key=value` strings. Raises SpecError."""
        from jobs.spec.load import parse, with_assignments
        from jobs.spec.read import read_document

        return parse(with_assignments(read_document(Path(path)), overrides or []))

    @classmethod
    def parse(cls, document: dict[str, Any]) -> "JobSpec":
        """Validates a document deeply. Raises SpecError with every problem found."""
        from jobs.spec.load import parse

        return parse(document)

    def replace(self, values: dict[str, Any]) -> "JobSpec":
        """The same job with other values at some dotted paths; how a trial differs from its search."""
        from jobs.spec.load import parse, with_values

        return parse(with_values(self.document(), values), check_space=False)
