"""Reading a spec file safely: YAML's safe subset under limits of size, depth and expansion, and exact errors."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import SpecError

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


def read_document(path: Path, *, what: str = "job spec", keys: str = "name, data, model, train, …") -> dict[str, Any]:
    """Reads a YAML (or JSON, its subset) file of limited size, depth and number of nodes. Raises SpecError.

    Args:
        what: the file should be.
        keys: it should hold; for messages.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no file system takes
        raise SpecError.at("", f"{path} is a folder, not a {what}")
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
        raise SpecError.at("", f"{path} is larger than a {what} may be", allowed=f"{MAX_SPEC_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.at("", f"{path} is not UTF-8 text (byte {error.start})") from None
    return parse_yaml(_json_as_yaml(text, str(path)) if path.suffix == ".json" else text, str(path), keys)


def parse_json(text: str, origin: str, keys: str = "name, data, model, train, …") -> dict[str, Any]:
    """Parses JSON text into a mapping, under the limits that YAML has. Raises SpecError."""
    document = _load_json(text, origin)
    if not isinstance(document, dict):
        raise SpecError.at("", f"{origin} must hold a mapping of keys", document, keys)
    if _depth(document) > MAX_SPEC_DEPTH:
        raise SpecError.at("", f"{origin} is nested too deeply", allowed=f"{MAX_SPEC_DEPTH} levels")
    if _expanded_size(document, {}) > MAX_SPEC_NODES:
        raise SpecError.at("", f"{origin} holds too many values", allowed=f"{MAX_SPEC_NODES} values")
    return document


def _depth(document: Any) -> int:
    """Levels of nesting; without recursion, and no further down than is allowed."""
    depth, level = 0, [document]
    while level and depth <= MAX_SPEC_DEPTH:
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        depth += 1
    return depth - 1 if not level else depth


def _json_as_yaml(text: str, origin: str) -> str:
    """The same JSON, written so that it is YAML too: tabs, and escapes that YAML reads otherwise, are no more in it."""
    return json.dumps(_load_json(text, origin), ensure_ascii=False)


def _load_json(text: str, origin: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            raise ValueError("a key stands twice")
        return document

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise SpecError.at("", f"{origin} is nested too deeply", allowed=f"{MAX_SPEC_DEPTH} levels") from None
    except ValueError as error:
        raise SpecError.at("", f"{origin} is not valid JSON: {error}") from None


def parse_yaml(text: str, origin: str, keys: str = "name, data, model, train, …") -> dict[str, Any]:
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
        raise SpecError.at("", f"{origin} must hold a mapping of keys", document, keys)
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
