"""From a document to a validated JobSpec: overrides, validation, and the checks that cross sections."""

import copy
import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.errors import Problem, SpecError
from jobs.spec.job import JobSpec
from jobs.spec.model import Model
from jobs.spec.problems import entry, problems_of, sections_in
from jobs.spec.read import parse_yaml
from jobs.spec.search import SEARCHABLE_PREFIXES, UNSEARCHABLE
from jobs.spec.space import Space, completed, pairs, probes
from jobs.spec.train import Train

Document = TypeVar("Document", bound=BaseModel)


def with_assignments(document: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Applies `key=value` strings of the command line; a value is read as YAML."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise SpecError.at("--set", "an override is written key=value", assignment, "train.epochs=2")
        parsed = parse_yaml(f"value: {text}", f"--set {key}")
        if list(parsed) != ["value"]:
            raise SpecError.at("--set", "an override sets one key", assignment, "train.epochs=2")
        values[key.strip()] = parsed["value"]
    return with_values(document, values)


def with_values(document: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the document with other values at dotted paths; sections that are missing are made."""
    result = copy.deepcopy(document)
    for path, value in values.items():
        node: Any = result
        *parents, last = path.split(".")
        for depth, part in enumerate(parents):
            child = entry(node, part)
            if child is None:
                if isinstance(node, list):
                    raise SpecError.at(path, "no such list entry", part, f"0 to {len(node) - 1}")
                child = node[part] = _new_section(".".join(parents[: depth + 1]))
            elif isinstance(child, str) and part in ("schedule",):
                child = node[part] = {"name": child}
            if not isinstance(child, dict | list):
                raise SpecError.at(path, f"{'.'.join(parents[: depth + 1])} is a value and has no keys", child)
            node = child
        if isinstance(node, list):
            if entry(node, last) is None:
                raise SpecError.at(path, "no such list entry", last, f"0 to {len(node) - 1}")
            node[int(last)] = value
        else:
            node[last] = value
    return result


def _new_section(path: str) -> dict[str, Any]:
    """What stands for a section that was not written down: a key below it changes the default, not its name."""
    defaults = Train()
    named = {"train.optimizer": defaults.optimizer, "train.schedule": defaults.schedule}
    return {"name": named[path].name} if path in named else {}


def parse(document: dict[str, Any], *, check_space: bool = True) -> JobSpec:
    """Validates a document into a JobSpec. Raises SpecError with every problem found."""
    spec = validated(JobSpec, document)
    if problems := _space_problems(spec) if check_space else []:
        raise SpecError(problems)
    return spec


def validated(section: type[Document], document: dict[str, Any]) -> Document:
    """Validates a document, in which nothing is rewritten. Raises SpecError with every problem found."""
    if problems := _unwritable(document, ""):
        raise SpecError(problems)
    try:
        found = section.model_validate(document)
    except ValidationError as error:
        raise SpecError(problems_of(error, document)) from None
    if problems := _coerced(document, found.model_dump(mode="json", by_alias=True), ""):
        raise SpecError(problems)
    return found


def _unwritable(node: Any, path: str) -> list[Problem]:
    """Where a document holds what JSON can't: NaN, infinity, objects, keys that are no text."""
    if isinstance(node, dict):
        found = [Problem(path, "a key must be text", k) for k in node if not isinstance(k, str)]
        return found + [p for k, v in node.items() for p in _unwritable(v, f"{path}.{k}".lstrip("."))]
    if isinstance(node, list | tuple):
        return [p for i, v in enumerate(node) for p in _unwritable(v, f"{path}.{i}")]
    if isinstance(node, float) and (node != node or node in (float("inf"), float("-inf"))):
        return [Problem(path, "must be a finite number", str(node))]
    if node is None or isinstance(node, str | int | float | bool):
        return []
    return [Problem(path, f"a {type(node).__name__} has no place in a spec", str(node))]


def _coerced(asked: Any, understood: Any, path: str) -> list[Problem]:
    """Where validation turned text or true/false into a number: nothing is silently rewritten."""
    if isinstance(asked, dict) and isinstance(understood, dict):
        return [
            p
            for k, v in asked.items()
            if k in understood
            for p in _coerced(v, understood[k], f"{path}.{k}".lstrip("."))
        ]
    if isinstance(asked, list) and isinstance(understood, list):
        return [
            p for i, (a, u) in enumerate(zip(asked, understood, strict=False)) for p in _coerced(a, u, f"{path}.{i}")
        ]
    number = isinstance(understood, int | float) and not isinstance(understood, bool)
    if number and (isinstance(asked, bool | str)):
        return [Problem(path, "must be a number", asked, "a number")]
    if isinstance(understood, bool) and not isinstance(asked, bool):
        return [Problem(path, "must be true or false", asked, "true, false")]
    return []


def _space_problems(spec: JobSpec) -> list[Problem]:
    """Every searched path must exist, be a hyperparameter, and be legal over its whole range."""
    problems: list[Problem] = []
    if spec.search is None:
        return problems
    # Without the search, which is looked at already: a long one would be looked at again for every value of it.
    base = spec.document() | {"search": None}
    # What a trial is made of: the choices change which other keys there are. Where one of them is wrong, it is said
    # of that one alone.
    beside_choices = _refusal(base, completed(spec.search.space, {})) is None
    for key in spec.search.space:
        where = f"search.space.{key}"
        if not key.startswith(SEARCHABLE_PREFIXES) or key in UNSEARCHABLE:
            known = _known_paths(JobSpec)
            exists = key in UNSEARCHABLE or key in known
            searchable = [k for k in known if k.startswith(SEARCHABLE_PREFIXES) and k not in UNSEARCHABLE]
            near = [] if exists else difflib.get_close_matches(key, searchable, n=1)
            what = "can't be searched" if exists else "is no path in the spec"
            problems.append(
                Problem(
                    where,
                    f"{key} {what}",
                    allowed="keys below train, model.args, compress.prune, compress.pack; data.normalize",
                    nearest=near[0] if near else None,
                )
            )
            continue
        if problem := _illegal_value(spec.search.space, key, base, beside_choices):
            problems.append(problem)
    return problems


def _illegal_value(space: Space, key: str, base: dict[str, Any], beside_choices: bool) -> Problem | None:
    """The first of the probed values of a searched key that no trial could have, alone or beside another choice."""
    for values in (*probes(space, key), *(pairs(space, key) if beside_choices else ())):
        together = completed(space, values) if beside_choices else values
        if (error := _refusal(base, together)) is None:
            continue
        first = error.problems[0]
        message = first.message if first.path == key else f"{first.path}: {first.message}"
        others = [f"{other} = {value}" for other, value in values.items() if other != key]
        if others:
            message += f" (beside {', '.join(others)})"
        return Problem(f"search.space.{key}", message, values[key], first.allowed, first.nearest)
    return None


def _refusal(base: dict[str, Any], values: dict[str, Any]) -> SpecError | None:
    try:
        parse(with_values(base, values), check_space=False)
    except SpecError as error:
        return error
    return None


def _known_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        paths.append(prefix + key)
        for nested in sections_in(field.annotation):
            paths += _known_paths(nested, f"{prefix}{key}.")
    return paths


def model_section(document: dict[str, Any]) -> Any:
    """The `model:` section alone, from JSON that an artifact carries."""
    return TypeAdapter(Model).validate_python(document)
