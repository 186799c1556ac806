"""The manifests of cluster/manifests, and the schemas that they are held to.

- Kubernetes' own objects, and the pods within others': the strict schemas that kubernetes-validate carries.
- `ray up`: the schema that Ray carries, and `schemas/ray_up.yaml` for what that one leaves open.
- KubeRay's and Kueue's objects: `schemas/kuberay.yaml` and `schemas/kueue.yaml`, written for these tests.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

FOLDER = Path(__file__).parents[2] / "cluster" / "manifests"
SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "v1.34.0-local-strict"
"""The oldest minor version that is still maintained; what it knows, later ones know as well."""
OWN = {"ray.io/v1": "kuberay", "kueue.x-k8s.io/v1beta2": "kueue"}

NAMES = tuple(sorted(path.name for path in FOLDER.glob("*.yaml")))


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def documents(name: str) -> list[dict[str, Any]]:
    """The documents of a manifest; a fresh copy each time."""
    copied: list[dict[str, Any]] = json.loads(_as_json(name))
    return copied


@cache
def _as_json(name: str) -> str:
    # YAML's anchors make parts that are the same object: a change of one must not be one of the other.
    return json.dumps(list(yaml.safe_load_all(_text(name))))


def objects(kind: str) -> list[dict[str, Any]]:
    """All Kubernetes objects of a kind, in every manifest."""
    return [each for name in NAMES for each in documents(name) if each.get("kind") == kind]


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(whose, spec) of every pod that any manifest makes."""
    for deployment in objects("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
    clusters = [(each["metadata"]["name"], each["spec"]) for each in objects("RayCluster")]
    clusters += [(each["metadata"]["name"], each["spec"]["rayClusterSpec"]) for each in objects("RayJob")]
    for name, cluster in clusters:
        yield f"{name}: head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name}: {group['groupName']}", group["template"]["spec"]


def problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with a document by the schema of its kind."""
    errors = [each for validator in _validators(document) for each in validator.iter_errors(document)]
    return [f"{each.json_path}: {each.message}" for each in errors]


def _validators(document: dict[str, Any]) -> list[Any]:
    if "cluster_name" in document:
        return [_validator("ray"), _validator("ray_up")]
    api, kind = document.get("apiVersion"), document.get("kind")
    if api in OWN and kind in _own(OWN[api])["$defs"]:
        return [_validator(OWN[api], f"#/$defs/{kind}")]
    if name := _kubernetes_names().get((api, kind)):
        return [_validator("kubernetes", f"#/$defs/{name}")]
    return [jsonschema.Draft202012Validator({"not": {"description": "a kind that no schema knows"}})]


@cache
def _validator(name: str, pointer: str = "") -> Any:
    return jsonschema.Draft202012Validator({"$ref": f"{name}{pointer}"}, registry=_registry())


@cache
def _own(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load((SCHEMAS / f"{name}.yaml").read_text(encoding="utf-8"))
    return schema


@cache
def _registry() -> Any:
    own = {path.stem: _own(path.stem) for path in sorted(SCHEMAS.glob("*.yaml"))}
    ray = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text(encoding="utf-8"))
    every = {**own, "kubernetes": _kubernetes(), "ray": ray}
    resources = [(name, Resource(_bare(schema), DRAFT202012)) for name, schema in every.items()]
    return Registry().with_resources(resources)


def _bare(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("$id", "$schema")}


@cache
def _kubernetes() -> dict[str, Any]:
    path = files("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES / "_definitions.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def _kubernetes_names() -> dict[tuple[str, str], str]:
    names = {}
    for name, schema in _kubernetes()["$defs"].items():
        for each in schema.get("x-kubernetes-group-version-kind", ()):
            names["/".join(filter(None, (each["group"], each["version"]))), each["kind"]] = name
    return names
