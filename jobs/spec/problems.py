"""Pydantic's findings in the spec's own words: path, value, what is allowed, the nearest name."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.errors import Problem
from jobs.spec.job import JobSpec


def problems_of(error: ValidationError, document: dict[str, Any]) -> list[Problem]:
    """Pydantic's findings in the spec's own words; one problem a place."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "default_factory_not_called":
            continue  # a default that depends on what is wrong
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
        node = entry(node, str(part)) if isinstance(node, dict | list) else None
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
            for nested in sections_in(field.annotation)
        ]
    return [tag for section in sections for tag in getattr(section.model_fields[key].annotation, "__args__", ())]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) else None


def nearest(name: Any, known: list[str]) -> str | None:
    """The known name closest to a misspelt one, or None if nothing is close."""
    return next(iter(difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)), None)


def entry(node: Any, part: str) -> Any:
    """What stands at a key of a mapping, or at an index of a list; None if nothing does."""
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    return node.get(part)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in sections_in(part)]
