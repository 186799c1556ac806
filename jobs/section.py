"""The base of every part of a job spec, and of every record written to JSON."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the job spec: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = sorted(field.alias or name for name, field in cls.model_fields.items())
            if unknown := [key for key in value if key not in known]:
                raise PydanticCustomError("unknown_keys", "unknown keys", {"unknown": unknown, "known": known})
        return value


class Record(BaseModel):
    """Something that was decided, made or measured; written to JSON and read back."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        return cls.model_validate(document)


def not_supported_yet(what: str, at: str = "") -> PydanticCustomError:
    """The refusal of something that the schema names but that this version does not do.

    `at` is the path of the key, relative to the section that refuses it.
    """
    return PydanticCustomError("illegal", "{reason}", {"reason": f"not supported yet: {what}", "at": at})


def illegal(message: str, allowed: str | None = None, at: str = "") -> PydanticCustomError:
    """The refusal of a value; `allowed` says what would have been accepted, `at` as in not_supported_yet."""
    return PydanticCustomError("illegal", "{reason}", {"reason": message, "allowed": allowed, "at": at})
