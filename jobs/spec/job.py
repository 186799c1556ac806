"""JobSpec: everything one job is asked for."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.layout import ParallelLayout, Setting, refusal
from jobs.section import Section, illegal
from jobs.spec.compress import Compress, Export
from jobs.spec.data import Data
from jobs.spec.model import FactoryModel, Model
from jobs.spec.search import Search
from jobs.spec.train import Layout, Resources, Retry, Train

Metric = Literal["accuracy", "f1_macro", "roc_auc", "log_loss", "perplexity", "rmse", "mae"]
CLASSIFICATION_METRICS = ("accuracy", "f1_macro", "roc_auc", "log_loss")
REGRESSION_METRICS = ("rmse", "mae")
LANGUAGE_METRICS = ("perplexity", "log_loss", "accuracy")
METRICS = {
    "classification": CLASSIFICATION_METRICS,
    "regression": REGRESSION_METRICS,
    "language_model": LANGUAGE_METRICS,
}
HIGHER_IS_BETTER = ("accuracy", "f1_macro", "roc_auc")


def _default_metric(job: dict[str, Any]) -> Metric:
    """Called after `data` and `train` are validated, and without them where they are wrong."""
    if "data" in job and job["data"].of_language:
        return "perplexity"
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
    """Default: accuracy; rmse under mse; perplexity for a language model."""
    layout: Literal["auto"] | Layout = "auto"
    resources: Resources = Resources()
    retry: Retry = Retry()
    search: Search | None = None
    compress: Compress = Compress()
    export: Export = Export()

    @model_validator(mode="before")
    @classmethod
    def _categories_of_model(cls, value: Any) -> Any:
        """A recommender takes codes: `data.categories` is filled in where it was left out."""
        match value:
            case {"model": {"name": "recommender"}, "data": {**data}} if "categories" not in data:
                return {**value, "data": {**data, "categories": "codes"}}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "JobSpec":
        self._check_task()
        self._check_categories()
        if self.search is not None:
            direction = self.search.objectives.metric
            if direction is not None and direction != self.metric_direction:
                raise illegal(
                    f"search.objectives.metric is {direction}, but {self.metric} gets better towards "
                    f"{self.metric_direction}",
                    self.metric_direction,
                    at="search.objectives.metric",
                )
            if self.resources.runtime == "ray_train":
                what = "a search runs its trials on warm gangs: a run of Ray Train would have to start for each"
                raise illegal(what, "gang", at="resources.runtime")
        self._check_layout()
        return self

    def _check_layout(self) -> None:
        """What is legal of itself; what the model must be fit for is seen by the planner."""
        fewest, most = self.worker_range
        if fewest != most and self.layout != "auto":
            what = "an elastic job has a layout for each number of workers"
            raise illegal(what, "auto, or a fixed number of workers", at="layout")
        asked = self.layout.parallel if isinstance(self.layout, Layout) else self.data_parallel
        if problem := refusal(asked, self.layout_setting):
            raise illegal(problem.message, problem.allowed, at=problem.path)

    def _check_task(self) -> None:
        """Loss, metric and class weights must be of the task that the data make it."""
        language = self.task == "language_model"
        if language and self.train.loss != "cross_entropy":
            what = "a language model (text without `data.target`) predicts the next token, a class"
            raise illegal(what, "cross_entropy", at="train.loss")
        if language and self.train.class_weights is not None:
            raise illegal("a language model has no classes to weigh", "null", at="train.class_weights")
        allowed = METRICS[self.task]
        if self.metric not in allowed:
            of = "a language model" if language else f"the loss {self.train.loss}"
            raise illegal(f"metric {self.metric} does not go with {of}", ", ".join(allowed), at="metric")

    def _check_categories(self) -> None:
        codes, recommender = self.data.categories == "codes", self.model.name == "recommender"
        if recommender and not codes:
            raise illegal("a recommender looks codes up in tables", "codes", at="data.categories")
        if codes and not recommender and not self.uses_own_code:
            what = f"model {self.model.name} takes no codes"
            raise illegal(what, "one_hot, or model recommender", at="data.categories")

    @property
    def task(self) -> Literal["classification", "regression", "language_model"]:
        if self.data.of_language:
            return "language_model"
        return "regression" if self.train.loss == "mse" else "classification"

    @property
    def metric_direction(self) -> Literal["min", "max"]:
        return "max" if self.metric in HIGHER_IS_BETTER else "min"

    @property
    def num_workers(self) -> int:
        """The most that the job may have."""
        return self.worker_range[1]

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        workers = self.resources.workers
        return (workers, workers) if isinstance(workers, int) else workers

    def with_workers(self, count: int) -> "JobSpec":
        """The same job with a fixed number of workers."""
        resources = self.resources.model_copy(update={"workers": count})
        return self.model_copy(update={"resources": resources})

    @property
    def layout_setting(self) -> Setting:
        """What the spec alone says about which layouts are legal."""
        return Setting(
            precision=self.train.precision,
            accelerator=self.resources.gpus_per_worker > 0,
            workers=self.num_workers,
        )

    @property
    def data_parallel(self) -> ParallelLayout:
        """All workers data-parallel, with as little ZeRO as the precision takes."""
        return ParallelLayout(data=self.num_workers, zero_stage=0 if self.train.precision == "fp32" else 1)

    @property
    def compresses_by_search(self) -> bool:
        """Whether the search sets pruning keys, which turns pruning on."""
        return self.search is not None and any(key.startswith("compress.prune.") for key in self.search.space)

    @property
    def prunes(self) -> bool:
        return self.compress.prune is not None or self.compresses_by_search

    @property
    def packs(self) -> bool:
        """Whether a pack is made, or a search sets its keys, which makes one."""
        space = self.search.space if self.search is not None else ()
        return self.compress.pack is not None or any(key.startswith("compress.pack.") for key in space)

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
