"""Holds the manifests, and the reductions of `schemas/`, to the definitions that KubeRay and Kueue publish.

    python -m tests.cluster.true_schemas CRD.yaml…

KubeRay has them in helm-chart/kuberay-operator/crds, Kueue in config/components/crd/bases. Not in the test command,
since those files are large and change with each version; prints what differs, exit code 1 if anything does. Rules
in CEL (`x-kubernetes-validations`) are not evaluated: those that matter are in the reductions.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.cluster.manifest_schemas import OWN, SCHEMAS, objects

_OF_KUBERNETES = ("apiVersion", "kind", "metadata")


def strict(schema: Any) -> Any:
    """An `openAPIV3Schema` as JSON Schema that refuses unknown fields, as the API server does when asked to."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value for key, value in schema.items() if key not in ("properties", "format", "default")}
    for key in ("items", "additionalProperties"):
        if key in schema:
            made[key] = strict(schema[key])
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if "properties" in schema:
        made["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


def broken(definition: dict[str, Any]) -> Iterator[str]:
    """What of our manifests, and of our reduction, a CustomResourceDefinition does not agree with."""
    spec = definition["spec"]
    kind = spec["names"]["kind"]
    for version in spec["versions"]:
        api = f"{spec['group']}/{version['name']}"
        if api not in OWN:
            continue
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"type": "object"}
        validator = jsonschema.Draft202012Validator(strict(schema))
        for each in objects(kind):
            for error in validator.iter_errors(each):
                yield f"{kind} {each['metadata']['name']}: {error.json_path}: {error.message}"
        own = yaml.safe_load((SCHEMAS / f"{OWN[api]}.yaml").read_text(encoding="utf-8"))["$defs"]
        yield from wider(own, own[kind], schema, kind)


def wider(own: dict[str, Any], ours: dict[str, Any], true: dict[str, Any], path: str) -> Iterator[str]:
    """Where a reduction would let something pass that is refused there: unknown fields, types, values."""
    while str(ours.get("$ref", "")).startswith("#/$defs/"):
        ours = own[ours["$ref"].removeprefix("#/$defs/")]
    missing = set(true.get("required", ())) - set(ours.get("required", ())) - set(_OF_KUBERNETES)
    if missing and "$ref" not in ours:
        yield f"{path}: {', '.join(sorted(missing))} must be there"
    values = set(true.get("enum", ()))
    if values and not set(ours.get("enum", ("anything",))) <= values:
        yield f"{path}: one of {', '.join(sorted(values))}"
    if "type" in ours and "type" in true and ours["type"] != true["type"]:
        yield f"{path}: {true['type']}, not {ours['type']}"
    for name, below in ours.get("properties", {}).items():
        if name in _OF_KUBERNETES:
            continue
        if name not in true.get("properties", {}):
            yield f"{path}.{name}: no such field"
        else:
            yield from wider(own, below, true["properties"][name], f"{path}.{name}")
    if "items" in ours and "items" in true:
        yield from wider(own, ours["items"], true["items"], f"{path}[]")


def main(paths: list[str]) -> int:
    found = [
        problem
        for path in paths
        for definition in yaml.safe_load_all(Path(path).read_text(encoding="utf-8"))
        for problem in broken(definition)
    ]
    sys.stdout.write(("\n".join(found) or f"{len(paths)} definitions: all agree") + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
