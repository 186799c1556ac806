"""What `compress:` asks of a model, held against the model before anything starts. Pure."""

from collections.abc import Iterator

from jobs.errors import Problem, SpecError
from jobs.layout import ParallelLayout
from jobs.models.prunable import PARTS, Prunable, layer_names, linear_sides, prunable_layers
from jobs.models.registry import packable, prunable
from jobs.records import DatasetInfo, ModelSummary, Signature
from jobs.spec import JobSpec
from jobs.spec.compress import Prune
from jobs.spec.model import ForeignModel, HuggingFaceModel, OwnModel
from jobs.spec.problems import nearest
from orchestrator.planning.layouts import available_bytes

_FP32 = 4
_COPIES = 2
"""Of a model while it is compressed: itself, which is taught from too, and the one that becomes smaller."""


def check_compression(spec: JobSpec, info: DatasetInfo) -> None:
    """Refuses pruning, low rank and packs that the model has no layers for, or names that it has not.

    Of a user's model only pruning itself can tell. Raises SpecError.
    """
    problems: list[Problem] = []
    section = _prune_section(spec)
    if section is not None and (reason := prunable(spec.model, section.method)):
        raise SpecError.at("compress.prune", f"model {spec.model.name} can't be pruned: {reason}", None, "null")
    if spec.compress.low_rank is not None and isinstance(spec.model, HuggingFaceModel):
        what = "layers of Hugging Face's may read one another's weights, and so can't be replaced"
        raise SpecError.at("compress.low_rank", what, None, "null")
    if spec.packs and (reason := packable(spec.model, info.signature)):
        raise SpecError.at("compress.pack", f"model {spec.model.name} can't be packed: {reason}", None, "null")
    if isinstance(spec.model, ForeignModel):
        return
    if section is not None:
        problems += _prune_problems(section, spec.model, info.signature)
    problems += _low_rank_problems(spec, spec.model, info.signature)
    if problems:
        raise SpecError(problems)


def _prune_section(spec: JobSpec) -> Prune | None:
    """Of a search that sets pruning keys, the section that its values are put into."""
    return spec.compress.prune or (Prune() if spec.prunes else None)


def _prune_problems(section: Prune, model: OwnModel, signature: Signature) -> Iterator[Problem]:
    named = section.protect if isinstance(section.protect, tuple) else ()
    yield from _unknown("compress.prune.protect", named, model, signature)
    yield from _unknown("compress.prune.ignore", section.ignore, model, signature)
    if section.method != "structured":
        return
    layers = prunable_layers(model, signature)
    parts = list(dict.fromkeys(layer.part for layer in layers))
    if not layers:
        yield Problem("compress.prune", f"model {model.name} has no hidden layer that can be pruned", None, "null")
        return
    for index, part in enumerate(section.what or ()):
        if part not in parts:
            yield Problem(f"compress.prune.what.{index}", f"{model.name} has none", part, ", ".join(parts))
    chosen = [layer for layer in layers if layer.part in _asked(section) and layer.part != "layers"]
    widest = max((layer.width * layer.size for layer in chosen), default=0)
    if chosen and section.round_to > widest:
        what = "is more than any layer is wide, so that nothing would be pruned"
        yield Problem("compress.prune.round_to", what, section.round_to, f"at most {widest}")
    for layer in chosen:
        if layer.part != "heads" and int(layer.width * (1.0 - section.ratio) + 0.5) < 1 and not section.global_pruning:
            what = (
                f"removing this share would leave nothing of layer {layer.name!r} with its {layer.width} {layer.part}"
            )
            yield Problem("compress.prune.ratio", what, section.ratio, f"at most {1.0 - 0.5 / layer.width:.3g}")
            return


def _asked(section: Prune) -> tuple[str, ...]:
    return section.what or tuple(part for part in PARTS if part != "layers")


def _unknown(path: str, names: tuple[str, ...], model: OwnModel, signature: Signature) -> Iterator[Problem]:
    known = list(layer_names(model, signature)) if names else []
    for name in names:
        if name not in known:
            shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
            yield Problem(path, "the model has no such layer", name, shown, nearest(name, known))


def _low_rank_problems(spec: JobSpec, model: OwnModel, signature: Signature) -> Iterator[Problem]:
    section = spec.compress.low_rank
    if section is None:
        return
    yield from _unknown("compress.low_rank.ignore", section.ignore, model, signature)
    largest = max(linear_sides(model, signature, convolutions=section.convolutions), default=0)
    if largest < section.min_size:
        what = "no linear layer (with `convolutions: true`: no convolution either) has so many inputs and outputs"
        yield Problem("compress.low_rank.min_size", what, section.min_size, f"at most {largest}")


def check_rounding(spec: JobSpec, info: DatasetInfo, layout: ParallelLayout) -> list[str]:
    """Refuses pruned widths that the tensor peers of the training's layout could not divide. Raises SpecError.

    A layout that nobody asked for is no reason to refuse: recovery is data-parallel, so it is only said.
    """
    section = _prune_section(spec)
    if section is None or section.method != "structured" or layout.tensor == 1 or isinstance(spec.model, ForeignModel):
        return []
    asked = _asked(section)
    layers = [layer for layer in prunable_layers(spec.model, info.signature) if layer.part in asked]
    needed = max((_multiple(layer, layout.tensor) for layer in layers if layer.part != "layers"), default=1)
    if section.round_to % needed:
        heads = next((layer.size for layer in layers if layer.part == "heads"), None)
        why = f": heads have {heads} features" if heads and needed > layout.tensor else ""
        what = f"the widths left would not be multiples of the tensor degree {layout.tensor}{why}"
        problem = Problem("compress.prune.round_to", what, section.round_to, f"a multiple of {needed}")
        if spec.layout != "auto":
            raise SpecError([problem])
        return [f"the pruned model can't be trained by tensor peers again: {problem}"]
    return []


def _multiple(layer: Prunable, degree: int) -> int:
    """What `round_to` must be a multiple of, so that the number of units left is one of the degree.

    >>> _multiple(Prunable("layer1.0.body.1", "heads", 4, size=32), 2)
    64
    """
    return degree if layer.size == 1 else layer.size * degree


def check_pruning_memory(spec: JobSpec, model: ModelSummary, layout: ParallelLayout, memory_bytes: int) -> None:
    """Refuses a model that one worker does not hold whole, as all that shrinks it does on each. Raises SpecError."""
    section = _prune_section(spec)
    asked = {"prune": section is not None, "low_rank": spec.compress.low_rank is not None, "pack": spec.packs}
    if not any(asked.values()):
        return
    copies = _COPIES
    if section is not None and section.importance == "taylor":
        copies += 2  # gradients, and what they add up to
    needed = copies * _FP32 * model.params
    available = available_bytes(memory_bytes, layout.size)
    if needed > available:
        raise SpecError.at(
            f"compress.{next(name for name, wanted in asked.items() if wanted)}",
            f"every worker holds the whole model {copies} times while it is made smaller: {needed / 1e9:.2f} GB, and "
            f"it has {max(available, 0) / 1e9:.2f} GB",
            allowed="fewer or larger workers" + (", or importance: magnitude" if copies > _COPIES else ""),
        )
