"""What every encoding offers."""

from abc import abstractmethod
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from jobs.data.raw import Raw
from jobs.errors import ArtifactError
from jobs.section import Record

Encoded = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class Encoding(Record):
    """How raw samples become the input of a model.

    encoding = Encoding.from_json(card["encoding"])
    x = encoding.encode(raw)    # float32 or int64 (samples, *encoding.input_shape)
    """

    @property
    @abstractmethod
    def signature_kind(self) -> Literal["vector", "image", "sequence", "tokens", "codes"]:
        """Of one encoded sample, as in Signature."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one encoded sample."""

    @property
    def num_codes(self) -> tuple[int, ...]:
        """How many codes there are, 0 included: of the tokens, or of each column."""
        return ()

    @abstractmethod
    def encode(self, raw: Raw) -> Encoded:
        """Encodes raw samples: (samples, *input_shape), float32, or int64 for tokens and codes.

        A sample's result depends on that sample alone.
        """

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Reads what to_json wrote. Raises ArtifactError for anything else."""
        from jobs.data.encodings import KINDS  # they are subclasses of this one

        kind = KINDS.get(str(document.get("kind")))
        if kind is None or not issubclass(kind, cls):
            raise ArtifactError(f"no encoding of kind {document.get('kind')!r}; known: {', '.join(KINDS)}")
        try:
            encoding = kind.model_validate(document)
        except ValidationError as error:
            raise ArtifactError(f"the encoding is damaged: {error.errors()[0]['msg']}") from error
        assert isinstance(encoding, cls)
        return encoding
