"""Every manifest is what its schema asks for, and no misspelt key or value of it passes."""

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from orchestrator.service.routes import health
from orchestrator.service_commands import serve
from tests.cluster.manifest_schemas import NAMES, documents, objects, pod_specs, problems
from tests.cluster.true_schemas import broken

FREE = re.compile(
    r"""
    (^|\.)(labels|selector|matchLabels|nodeLabels|nodeSelector|annotations)\.      # names of one's own
    | (^|\.)(requests|limits)\.                                           # of devices
    | (^|\.)rayStartParams\.                                              # options of ray start
    | (^|\.)(data|stringData)\.                                           # contents
    | ^available_node_types\.[^.]+$ | ^file_mounts\.                       # names of one's own
    """,
    re.VERBOSE,
)
"""Mappings with names of the user's choice: no schema can tell a misspelt one."""


def keys(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """(path, mapping, key) of every key of a document; list places are left out of paths."""
    if isinstance(value, list):
        for each in value:
            yield from keys(each, path)
    elif isinstance(value, dict):
        for key, below in list(value.items()):
            here = f"{path}.{key}".lstrip(".")
            yield here, value, key
            yield from keys(below, here)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_is_what_its_schema_asks_for(name: str):
    assert [problem for document in documents(name) for problem in problems(document)] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_misspelt_key_passes(name: str):
    accepted, refused = [], 0
    for document in documents(name):
        for path, mapping, key in keys(document):
            if FREE.search(path):
                continue
            mapping[key + "x"] = mapping.pop(key)
            if problems(document):
                refused += 1
            else:
                accepted.append(path)
            mapping[key] = mapping.pop(key + "x")
        assert problems(document) == []
    assert accepted == []
    assert refused >= 5


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_another_type_passes(name: str):
    accepted = []
    for document in documents(name):
        for path, mapping, key in keys(document):
            if not isinstance(mapping[key], dict | list):
                continue
            before = mapping[key]
            mapping[key] = "neither a list nor a mapping"
            if not problems(document):
                accepted.append(path)
            mapping[key] = before
    # Ray's own schema looks at no commands.
    assert [path for path in accepted if not path.endswith("_commands")] == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("kueue.yaml", "spec.preemption.reclaimWithinCohort", "Anny"),
        ("kueue.yaml", "spec.preemption.withinClusterQueue", "Lower"),
        ("kueue.yaml", "spec.queueingStrategy", "FIFO"),
        ("kueue.yaml", "spec.resourceGroups.flavors.resources.nominalQuota", "16 GPUs"),
        ("kueue.yaml", "spec.cohortName", "Two Words"),
        ("kueue.yaml", "value", "high"),
        ("kueue.yaml", "apiVersion", "kueue.x-k8s.io/v1"),
        ("ray-cluster.yaml", "kind", "RayClusters"),
        ("ray-cluster.yaml", "spec.rayVersion", "2.60"),
        ("ray-cluster.yaml", "spec.authOptions.mode", "tokens"),
        ("ray-cluster.yaml", "spec.workerGroupSpecs.replicas", "4"),
        ("ray-cluster.yaml", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("ray-job.yaml", "spec.submissionMode", "HttpMode"),
        ("ray-job.yaml", "spec.backoffLimit", -1),
        ("ray-up-aws.yaml", "max_workers", "four"),
        ("ray-up-aws.yaml", "provider.type", "awz"),
        ("ray-up-aws.yaml", "available_node_types.gpu.node_config.InstanceType", "p4d"),
        ("serve.yaml", "apiVersion", "app/v1"),
        ("serve.yaml", "spec.replicas", "one"),
        ("serve.yaml", "spec.template.spec.containers.ports.containerPort", "8421"),
    ],
)
def test_a_wrong_value_is_refused(name: str, path: str, value: Any):
    changed = 0
    for document in documents(name):
        for found, mapping, key in keys(document):
            if found == path:
                mapping[key] = value
                changed += 1
                assert problems(document) != []
                break
    assert changed


def test_kueues_rules_between_fields():
    """Those of the definitions of Kueue that stand there as expressions."""
    (queue, *_) = objects("ClusterQueue")
    spec = queue["spec"]
    spec["preemption"]["borrowWithinCohort"]["policy"] = "LowerPriority"
    assert problems(queue) == []
    spec["preemption"]["reclaimWithinCohort"] = "Never"
    assert problems(queue) != []
    del spec["preemption"]["reclaimWithinCohort"]
    assert problems(queue) != []
    del spec["preemption"]
    assert problems(queue) == []
    del spec["cohortName"]
    assert problems(queue) != []
    (flavor,) = objects("ResourceFlavor")
    (toleration,) = flavor["spec"]["tolerations"]
    for wrong in ({"value": "x"}, {"operator": "Equal", "key": None}):
        changed = {name: value for name, value in (toleration | wrong).items() if value is not None}
        assert problems(flavor | {"spec": flavor["spec"] | {"tolerations": [changed]}}) != []


def test_a_definition_that_our_reduction_does_not_agree_with_is_seen():
    def definition(fields: dict[str, Any]) -> dict[str, Any]:
        own = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        spec = {"type": "object", "required": ["clusterQueue"], "properties": fields}
        schema = {"type": "object", "properties": own | {"spec": spec}}
        version = {"name": "v1beta2", "schema": {"openAPIV3Schema": schema}}
        return {"spec": {"group": "kueue.x-k8s.io", "names": {"kind": "LocalQueue"}, "versions": [version]}}

    assert list(broken(definition({"clusterQueue": {"type": "string"}}))) == []
    for fields, fault in (
        ({"queue": {"type": "string"}}, "LocalQueue.spec.clusterQueue: no such field"),
        ({"clusterQueue": {"type": "object"}}, "LocalQueue.spec.clusterQueue: object, not string"),
        ({"clusterQueue": {"type": "string", "enum": ["a"]}}, "LocalQueue.spec.clusterQueue: one of a"),
    ):
        found = list(broken(definition(fields)))
        assert fault in found
        assert any(each.startswith("LocalQueue vision: $.spec") for each in found)


def test_rays_version_is_one_that_the_project_allows():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (ray,) = [each for each in map(Requirement, project["dependencies"]) if each.name == "ray"]
    versions = [each["spec"]["rayVersion"] for each in objects("RayCluster")]
    versions += [each["spec"]["rayClusterSpec"]["rayVersion"] for each in objects("RayJob")]
    assert len(versions) >= 2
    assert [version for version in versions if version not in ray.specifier] == []


def test_the_service_is_probed_where_it_answers():
    (deployment,) = objects("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    routes = {getattr(route, "path", None) for route in health.router.routes}
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} <= routes
    port = inspect.signature(serve).parameters["port"].default
    assert container["ports"] == [{"containerPort": port, "name": "https"}]
    assert f"--port={port}" in container["args"]


def test_every_secret_that_is_named_is_in_the_example():
    known = {each["metadata"]["name"]: set(each["stringData"]) for each in documents("secrets.example.yaml")}
    named = {each["spec"]["authOptions"]["secretName"] for each in objects("RayCluster")}
    for _, pod in pod_specs():
        named |= {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    named.add(reference["name"])
                    assert reference["key"] in known[reference["name"]]
    assert named == set(known)
