"""From a file to a validated JobSpec: safe reading, overrides, and errors that a person can act on."""

import copy
import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.errors import Problem, SpecError
from jobs.spec.job import JobSpec
from jobs.spec.model import LATER_FAMILIES, Model
from jobs.spec.search import SEARCHABLE_PREFIXES, UNSEARCHABLE
from jobs.spec.train import Train

MAX_SPEC_BYTES = 1 << 20
MAX_SPEC_NODES = 100_000
MAX_SPEC_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, where 1e-3 is a number, a date stays text, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_document(path: Path) -> dict[str, Any]:
    """Reads a YAML (or JSON, its subset) file of limited size, depth and number of nodes. Raises SpecError."""
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no file system takes
        raise SpecError.at("", f"{path} is a folder, not a job spec")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SPEC_BYTES + 1)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise SpecError.at(
            "", f"no such file: {path}", nearest=str(path.with_name(near[0])) if near else None
        ) from None
    except OSError as error:
        raise SpecError.at("", f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_SPEC_BYTES:
        raise SpecError.at("", f"{path} is larger than a job spec may be", allowed=f"{MAX_SPEC_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.at("", f"{path} is not UTF-8 text (byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parses YAML text into a JSON-able mapping. Raises SpecError."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_SPEC_DEPTH:
                raise SpecError.at("", f"{origin} is nested too deeply", allowed=f"{MAX_SPEC_DEPTH} levels")
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SpecError.at("", f"{origin} is not valid YAML: {problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # PyYAML's constructors raise these for a value that is not of the type its tag names: !!int x.
        raise SpecError.at("", f"{origin} is not valid YAML: a value does not fit its type: {error}") from None
    except RecursionError:
        raise SpecError.at("", f"{origin} is nested too deeply", allowed=f"{MAX_SPEC_DEPTH} levels") from None
    if not isinstance(document, dict):
        raise SpecError.at("", f"{origin} must hold a mapping of keys", document, "name, data, model, train, …")
    if _expanded_size(document, {}) > MAX_SPEC_NODES:
        raise SpecError.at("", f"{origin} expands to too many values", allowed=f"{MAX_SPEC_NODES} values")
    return document


def _expanded_size(node: Any, known: dict[int, int]) -> int:
    """Number of values with every alias written out; linear time, however the aliases multiply."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_SPEC_NODES + 1  # an alias to itself is endless
        children = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_expanded_size(child, known) for child in children)
    return known[id(node)]


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
            child = _child(node, part)
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
            if _child(node, last) is None:
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


def _child(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def parse(document: dict[str, Any], *, check_space: bool = True) -> JobSpec:
    """Validates a document into a JobSpec. Raises SpecError with every problem found."""
    if problems := _unwritable(document, ""):
        raise SpecError(problems)
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(_problems(error, document)) from None
    problems = _coerced(document, spec.resolved(), "") or (_space_problems(spec) if check_space else [])
    if problems:
        raise SpecError(problems)
    return spec


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
    base = spec.document()
    for key, dimension in spec.search.space.items():
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
                    allowed="keys below train, model.args, compress.prune; data.normalize",
                    nearest=near[0] if near else None,
                )
            )
            continue
        for value in dimension.probes:
            try:
                parse(with_values(base, {key: value}), check_space=False)
            except SpecError as error:
                first = error.problems[0]
                message = first.message if first.path == key else f"{first.path}: {first.message}"
                problems.append(Problem(where, message, value, first.allowed, first.nearest))
                break
    return problems


def _known_paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        paths.append(prefix + key)
        for nested in _sections_in(field.annotation):
            paths += _known_paths(nested, f"{prefix}{key}.")
    return paths


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in _sections_in(part)]


def _problems(error: ValidationError, document: dict[str, Any]) -> list[Problem]:
    """Pydantic's findings in the spec's own words; one problem a place."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        path = _locate(item["loc"], document, missing=item["type"] == "missing")
        for problem in _translate(path, item):
            before = found.get(problem.path)
            if before and problem.allowed and problem.allowed not in (before.allowed or ""):
                either = f"{before.allowed}; or {problem.allowed}" if before.allowed else problem.allowed
                problem = Problem(before.path, before.message, before.value, either, before.nearest)
            found[problem.path] = problem
    # Where something inside is wrong, that the whole is "no auto" or "too short" only misleads.
    return [p for p in found.values() if not any(other.startswith(f"{p.path}.") for other in found if p.path)]


def _locate(location: tuple[int | str, ...], document: Any, *, missing: bool) -> str:
    """The dotted path of a finding, without the tags that pydantic adds for unions."""
    node: Any = document
    parts: list[str] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(node, dict) and part not in node and not (missing and last):
            continue  # the tag of a union: the section's own kind or name
        if isinstance(node, list) and not isinstance(part, int):
            continue  # likewise, in a union with a list
        if not isinstance(node, dict | list) and not (missing and last):
            break  # a branch of a union of plain types
        parts.append(str(part))
        node = _child(node, str(part)) if isinstance(node, dict | list) else None
    return ".".join(parts)


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "finite_number": "a finite number",
}
_BOUNDS = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least")}
_BOUNDS |= {"less_than": ("lt", "below"), "less_than_equal": ("le", "at most")}


def _translate(path: str, item: Any) -> list[Problem]:
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "unknown_keys":
        known = context["known"]
        prefix = f"{path}." if path else ""
        return [
            Problem(prefix + key, "unknown key", None, ", ".join(known), nearest(key, known))
            for key in context["unknown"]
        ]
    if kind == "missing":
        return [Problem(path, "is required")]
    if kind in _WANTED:
        return [Problem(path, f"must be {_WANTED[kind]}", value, _WANTED[kind])]
    if kind in _BOUNDS:
        key, word = _BOUNDS[kind]
        return [Problem(path, "is out of range", value, f"{word} {context[key]}")]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return [Problem(path, "is not one of the choices", value, ", ".join(choices), nearest(value, choices))]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = "kind" if path.endswith("source") else "name"
        tags = re.findall(r"'([^']*)'", context.get("expected_tags", "")) or _tags(path, key)
        tags = ["package.module:factory" if tag == "factory" else tag for tag in tags]
        if not isinstance(value, dict):
            return [Problem(path, "must be a mapping of keys", value, f"{{{key}: …}}")]
        tag = value.get(key)
        if tag is None:
            return [Problem(f"{path}.{key}", "is required", None, ", ".join(tags))]
        if key == "name" and path == "model" and tag in LATER_FAMILIES:
            return [Problem(f"{path}.{key}", f"not supported yet: model {tag}", tag, ", ".join(tags))]
        return [Problem(f"{path}.{key}", "is not one of the choices", tag, ", ".join(tags), nearest(tag, tags))]
    if kind in ("too_short", "string_too_short"):
        least = context.get("min_length", 1)
        return [Problem(path, "is too short", value, f"at least {least}")]
    if kind in ("too_long", "string_too_long"):
        return [Problem(path, "is too long", value, f"at most {context.get('max_length')}")]
    if kind == "string_pattern_mismatch":
        return [Problem(path, "has characters that are not allowed", value, f"a match of {context['pattern']}")]
    if kind == "illegal":
        for part in filter(None, context["at"].split(".")):
            value = value.get(part) if isinstance(value, dict) else None
            path = f"{path}.{part}".lstrip(".")
        return [Problem(path, context["reason"], _plain(value), context.get("allowed"))]
    return [Problem(path, item["msg"], _plain(value))]


def _tags(path: str, key: str) -> list[str]:
    """The names that tell the sections of a union at `path` apart."""
    sections: list[type[BaseModel]] = [JobSpec]
    for part in path.split("."):
        sections = [
            nested
            for section in sections
            for name, field in section.model_fields.items()
            if (field.alias or name) == part
            for nested in _sections_in(field.annotation)
        ]
    return [tag for section in sections for tag in getattr(section.model_fields[key].annotation, "__args__", ())]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) else None


def nearest(name: Any, known: list[str]) -> str | None:
    """The known name closest to a misspelt one, or None if nothing is close."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)), None)


def model_section(document: dict[str, Any]) -> Any:
    """The `model:` section alone, from JSON that an artifact carries."""
    return TypeAdapter(Model).validate_python(document)
