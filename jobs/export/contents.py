"""What artifact.json must say for the artifact to be used, or checked. Cards travel: any of it may be wrong."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from jobs.data import Encoding
from jobs.errors import ArtifactError
from jobs.export.card import CARD_NAME
from jobs.spec.job import Metric


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def of(cls, card: dict[str, Any], folder: Path) -> Self:
        """Of what `read_card` has read. Raises ArtifactError for a card that lacks something, or has it otherwise."""
        try:
            return cls.model_validate(card)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise ArtifactError(f"{folder / CARD_NAME} is damaged: {where}: {first['msg']}") from error


class Serving(_Part):
    """What predictions need.

    Attributes:
        classes: names in label order; empty where there are none.
    """

    task: Literal["classification", "regression", "language_model"]
    classes: tuple[str, ...] = ()
    encoding_document: dict[str, Any] = Field(alias="encoding")

    @property
    def encoding(self) -> Encoding:
        """Raises ArtifactError if it is damaged."""
        return Encoding.from_json(self.encoding_document)


class _Dataset(_Part):
    fingerprint: str = Field(pattern=r"^\w+$")


class _Reference(_Part):
    split: str
    ids: tuple[NonNegativeInt, ...] = Field(min_length=1)
    outputs: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({len(row) for row in self.outputs}) != 1 or len(self.outputs) != len(self.ids):
            raise ValueError("the outputs are not one row for each id")
        return self


class _Metric(_Part):
    name: Metric
    split: str
    value: float


class _Measurement(_Part):
    metric: _Metric


class Verifying(Serving):
    """What a second measurement needs as well."""

    dataset: _Dataset
    reference: _Reference
    measurement: _Measurement
