"""Which data which family takes."""

from typing import Literal

from jobs.errors import SpecError
from jobs.records import Signature

Kind = Literal["vector", "image", "sequence", "tokens", "codes"]

_DATA: dict[Kind, str] = {
    "vector": "vectors (features,)",
    "image": "images (channels, height, width)",
    "sequence": "sequences (steps, features)",
    "tokens": "tokens (steps,)",
    "codes": "codes (columns,)",
}
_FAMILIES: dict[Kind, str] = {
    "vector": "mlp",
    "image": "lenet, resnet; or mlp, which takes any shape",
    "sequence": "lstm, transformer; or mlp, which takes any shape",
    "tokens": "lstm, transformer, huggingface",
    "codes": "recommender",
}


def require(signature: Signature, family: str, *kinds: Kind, per_step: bool = False) -> None:
    """Refuses data that a family does not take.

    Args:
        kinds: those it takes.
        per_step: whether it can give outputs for each step.
    """
    if signature.kind not in kinds:
        raise SpecError.at(
            "model.name",
            f"{family} takes {' or '.join(_DATA[kind] for kind in kinds)}, and the data has "
            f"{_DATA[signature.kind].split()[0]} of the shape {signature.input_shape}",
            family,
            _FAMILIES[signature.kind],
        )
    if signature.per_step and not per_step:
        raise SpecError.at("model.name", f"{family} gives no outputs for each step", family, "lstm, transformer")
