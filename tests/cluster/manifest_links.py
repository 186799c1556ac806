"""What no schema can tell: whether the names in the manifests lead somewhere, and their figures agree.

`broken` gets all manifests, as {file: documents}, and returns what is wrong with them together.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from jobs.errors import SpecError
from jobs.spec import JobSpec
from tests.cluster.manifest_commands import fault, options, start_faults, variables, words_of

Document = dict[str, Any]
Manifests = dict[str, list[Document]]

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
_KUEUE = "kueue.x-k8s.io"
_NAME = "app.kubernetes.io/name"
_OF_OTHERS = {
    "KubeRay's nodes": {"ray.io/is-ray-node": "yes"},
    "KubeRay's operator": {_NAME: "kuberay-operator"},
}
"""Labels of pods that other programs make."""
_LABELS = {
    _NAME: None,
    f"{_KUEUE}/queue-name": None,
    f"{_KUEUE}/priority-class": None,
    "pod-security.kubernetes.io/enforce": {"privileged", "baseline", "restricted"},
    "nvidia.com/gpu.product": None,
}
"""Label -> its values; None: any."""
_RESOURCES = {"cpu", "memory", "nvidia.com/gpu", "storage"}
_CLUSTER_SCOPED = {"Namespace", "ResourceFlavor", "ClusterQueue", "WorkloadPriorityClass"}


class World:
    """All objects of the manifests, by kind, and the pods that they make."""

    def __init__(self, manifests: Manifests) -> None:
        self.manifests = manifests
        self.objects = [each for documents in manifests.values() for each in documents if "kind" in each]
        self.ray_up = [each for documents in manifests.values() for each in documents if "cluster_name" in each]

    def of(self, kind: str) -> list[Document]:
        return [each for each in self.objects if each["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.of(kind)}

    def clusters(self) -> Iterator[tuple[Document, Document]]:
        """(owner, its Ray cluster's spec)."""
        yield from ((each, each["spec"]) for each in self.of("RayCluster"))
        yield from ((each, each["spec"]["rayClusterSpec"]) for each in self.of("RayJob"))

    def groups(self, cluster: Document) -> list[Document]:
        return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]

    def pods(self) -> Iterator[tuple[Document, Document]]:
        """(owner, its pods' template)."""
        yield from ((each, each["spec"]["template"]) for each in self.of("Deployment"))
        for owner, cluster in self.clusters():
            yield from ((owner, group["template"]) for group in self.groups(cluster))


def broken(manifests: Manifests) -> list[str]:
    """Every fault, with the object or file that it is of."""
    world = World(manifests)
    return [words for check in CHECKS for words in check(world)]


def _label_faults(world: World) -> Iterator[str]:
    given = [(each["metadata"]["name"], each["metadata"].get("labels", {})) for each in world.objects]
    given += [(owner["metadata"]["name"], pod.get("metadata", {}).get("labels", {})) for owner, pod in world.pods()]
    given += [(each["metadata"]["name"], each["spec"].get("nodeLabels", {})) for each in world.of("ResourceFlavor")]
    for name, labels in given:
        for label, value in labels.items():
            allowed = _LABELS.get(label, set())
            if allowed is not None and value not in allowed:
                yield f"{name}: no such label: {label}: {value}"


def _selector_faults(world: World) -> Iterator[str]:
    pods = [labels for _, pod in world.pods() if (labels := pod.get("metadata", {}).get("labels"))]
    for each in world.of("Deployment"):
        if not _matches(each["spec"]["selector"]["matchLabels"], [each["spec"]["template"]["metadata"]["labels"]]):
            yield f"deployment {each['metadata']['name']}: its selector does not select its own pods"
    for each in world.of("Service"):
        if not _matches(each["spec"]["selector"], pods):
            yield f"service {each['metadata']['name']}: selects no pod"
    for each in world.of("NetworkPolicy"):
        spec = each["spec"]
        sources = [source for rule in spec["ingress"] for source in rule["from"]]
        for selector in (spec, *sources):
            wanted = selector["podSelector"]["matchLabels"]
            if not _matches(wanted, [*pods, *_OF_OTHERS.values()]):
                yield f"policy {each['metadata']['name']}: no pod has {wanted}"
    spaces = [{"kubernetes.io/metadata.name": name} for name in world.names("Namespace")]
    for each in world.of("ClusterQueue"):
        if not _matches(each["spec"]["namespaceSelector"]["matchLabels"], spaces):
            yield f"cluster queue {each['metadata']['name']}: selects no namespace"


def _matches(selector: dict[str, str], labelled: list[dict[str, str]]) -> bool:
    return bool(selector) and any(selector.items() <= labels.items() for labels in labelled)


def _namespace_faults(world: World) -> Iterator[str]:
    for each in world.objects:
        name, place = each["metadata"]["name"], each["metadata"].get("namespace")
        if each["kind"] in _CLUSTER_SCOPED and place is not None:
            yield f"{name}: a {each['kind']} has no namespace"
        if each["kind"] not in _CLUSTER_SCOPED and place not in world.names("Namespace"):
            yield f"{name}: no such namespace: {place}"


def _queue_faults(world: World) -> Iterator[str]:
    for each in world.of("LocalQueue"):
        if each["spec"]["clusterQueue"] not in world.names("ClusterQueue"):
            yield f"queue {each['metadata']['name']}: no such cluster queue: {each['spec']['clusterQueue']}"
    for each in world.objects:
        labels = each["metadata"].get("labels", {})
        queue, priority = labels.get(f"{_KUEUE}/queue-name"), labels.get(f"{_KUEUE}/priority-class")
        if queue is not None and queue not in world.names("LocalQueue"):
            yield f"{each['metadata']['name']}: no such queue: {queue}"
        if priority is not None and priority not in world.names("WorkloadPriorityClass"):
            yield f"{each['metadata']['name']}: no such priority class: {priority}"
        if each["kind"] == "RayJob" and (queue is None) == each["spec"].get("suspend", False):
            yield f"{each['metadata']['name']}: is suspended if and only if a queue lifts that"


def _flavor_faults(world: World) -> Iterator[str]:
    used = set()
    for each in world.of("ClusterQueue"):
        name = each["metadata"]["name"]
        for group in each["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                used.add(flavor["name"])
                if [one["name"] for one in flavor["resources"]] != group["coveredResources"]:
                    yield f"cluster queue {name}: flavor {flavor['name']} covers other resources than its group"
            if unknown := set(group["coveredResources"]) - _RESOURCES:
                yield f"cluster queue {name}: no such resources: {sorted(unknown)}"
    if used != world.names("ResourceFlavor"):
        yield f"flavors: {sorted(used)} are named, {sorted(world.names('ResourceFlavor'))} are there"
    for each in world.of("ResourceFlavor"):
        for owner, pod in world.pods():
            tolerated = pod["spec"].get("tolerations", [])
            if _limits(pod).get("nvidia.com/gpu") and tolerated != each["spec"]["tolerations"]:
                yield f"{owner['metadata']['name']}: tolerates something else than flavor {each['metadata']['name']}"


def _resource_faults(world: World) -> Iterator[str]:
    for owner, pod in world.pods():
        for container in pod["spec"]["containers"]:
            requests, limits = (container["resources"][each] for each in ("requests", "limits"))
            if unknown := (set(requests) | set(limits)) - _RESOURCES:
                yield f"{owner['metadata']['name']}: no such resources: {sorted(unknown)}"
            if set(requests) != set(limits) or requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
                yield f"{owner['metadata']['name']}: requests and limits are of different resources"
    for each in world.of("PersistentVolumeClaim"):
        if set(each["spec"]["resources"]["requests"]) != {"storage"}:
            yield f"volume {each['metadata']['name']}: a volume is of storage alone"


def _limits(pod: Document) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    limits: dict[str, Any] = container["resources"]["limits"]
    return limits


def _version_faults(world: World) -> Iterator[str]:
    (ray,) = [each for each in map(Requirement, _PROJECT["dependencies"]) if each.name == "ray"]
    versions = {cluster["rayVersion"] for _, cluster in world.clusters()}
    if len(versions) != 1 or any(version not in ray.specifier for version in versions):
        yield f"ray: versions {sorted(versions)}; one is wanted, and {ray.specifier}"
    images = [(container["image"], "nvidia.com/gpu" in _limits(pod)) for _, pod in world.pods()
              for container in pod["spec"]["containers"]]  # fmt: skip
    images += [(each["docker"]["image"], True) for each in world.ray_up]
    expected = {f"registry.example.com/thresher:{_PROJECT['version']}-{device}" for device in ("cpu", "gpu")}
    for image, needs_gpu in images:
        if image not in expected or (needs_gpu and not image.endswith("-gpu")):
            yield f"image {image}: not one of {sorted(expected)} that suits"
    for owner, cluster in world.clusters():
        if len({container["image"] for group in world.groups(cluster)
                for container in group["template"]["spec"]["containers"]}) != 1:  # fmt: skip
            yield f"{owner['metadata']['name']}: head and workers have different images"


def _volume_faults(world: World) -> Iterator[str]:
    maps = {each["metadata"]["name"]: set(each["data"]) for each in world.of("ConfigMap")}
    for owner, pod in world.pods():
        name, spec = owner["metadata"]["name"], pod["spec"]
        if spec["serviceAccountName"] not in world.names("ServiceAccount"):
            yield f"{name}: no such account: {spec['serviceAccountName']}"
        volumes = {each["name"]: each for each in spec["volumes"]}
        mounted = {each["name"] for container in spec["containers"] for each in container["volumeMounts"]}
        if mounted != set(volumes):
            yield f"{name}: mounts {sorted(mounted)}, has {sorted(volumes)}"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in world.names("PersistentVolumeClaim"):
                yield f"{name}: no such volume claim: {claim}"
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{name}: no such config map: {volume['configMap']['name']}"


def _command_faults(world: World) -> Iterator[str]:
    for owner, cluster in world.clusters():
        for group in world.groups(cluster):
            yield from (f"{owner['metadata']['name']}: {words}" for words in start_faults(group["rayStartParams"]))
    for each in world.of("RayJob"):
        (container,) = each["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        pod = each["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        yield from _our_command(world, each["metadata"]["name"], words_of(each["spec"]["entrypoint"]), container, pod)
    for each in world.of("Deployment"):
        pod = each["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield from _our_command(world, each["metadata"]["name"], container["args"], container, pod)


def _our_command(world: World, name: str, words: list[str], container: Document, pod: Document) -> Iterator[str]:
    """A command of ours in a container: it parses, its files are mounted, its variables are set."""
    if words[0] != "thresher":
        yield f"{name}: {words[0]} is not our command"
    if (refused := fault(words)) is not None:
        yield f"{name}: {refused}"
    contents = {each["metadata"]["name"]: set(each["data"]) for each in world.of("ConfigMap")}
    contents |= {each["metadata"]["name"]: set(each["stringData"]) for each in world.of("Secret")}
    sources = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["mountPath"]: sources.get(each["name"], {}) for each in container["volumeMounts"]}
    for path in (each for word in words for each in re.findall(r"(?:^|=)(/[^ ]+)$", word)):
        place = next((mount for mount in mounts if path == mount or path.startswith(f"{mount}/")), None)
        if place is None:
            yield f"{name}: {path} is not mounted"
            continue
        source = mounts[place].get("configMap", {}).get("name") or mounts[place].get("secret", {}).get("secretName")
        if source is not None and path.removeprefix(f"{place}/") not in contents.get(source, set()):
            yield f"{name}: {source} has no {path.removeprefix(f'{place}/')}"
    wanted = {each for word in words for each in variables(word)}
    if wanted - {each["name"] for each in container.get("env", [])}:
        yield f"{name}: {sorted(wanted)} must be set"


def _spec_faults(world: World) -> Iterator[str]:
    """The spec in a ConfigMap is one, and its gang fits into the workers beside it."""
    for each in world.of("ConfigMap"):
        for text in each["data"].values():
            try:
                spec = JobSpec.parse(yaml.safe_load(text))
            except SpecError as error:
                yield f"{each['metadata']['name']}: {error}"
                continue
            jobs = [job for job in world.of("RayJob") if job["metadata"]["name"] == spec.name]
            if not jobs:
                yield f"{each['metadata']['name']}: no job is named {spec.name}"
            for job in jobs:
                groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
                for resource, amount in (("cpu", spec.resources.cpus_per_worker),
                                         ("nvidia.com/gpu", spec.resources.gpus_per_worker)):  # fmt: skip
                    room = sum(int(_limits(group["template"])[resource]) * group["replicas"] for group in groups)
                    if room < spec.num_workers * amount:
                        yield f"{spec.name}: its workers need more {resource} than there is"
                if job["metadata"]["labels"].get(f"{_KUEUE}/queue-name") != spec.project:
                    yield f"{spec.name}: is of project {spec.project}, and in another one's queue"


def _port_faults(world: World) -> Iterator[str]:
    heads = {f"{owner['metadata']['name']}-head-svc": cluster["headGroupSpec"] for owner, cluster in world.clusters()}
    ports = {name: _ports(head["template"]["spec"]) for name, head in heads.items()}
    for each in world.of("Deployment"):
        name, spec = each["metadata"]["name"], each["spec"]["template"]["spec"]
        own = _ports(spec)
        (container,) = spec["containers"]
        given = options(container["args"])
        if set(own.values()) != {int(given.get("--port", 8421))}:
            yield f"{name}: listens on {given.get('--port')}, and says {own}"
        probes = [container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")]
        if set(probes) - set(own):
            yield f"{name}: is probed on {probes}, and has {sorted(own)}"
        for service in world.of("Service"):
            if targets := {one["targetPort"] for one in service["spec"]["ports"]} - set(own):
                yield f"service {service['metadata']['name']}: leads to {sorted(targets)}, which no pod has"
        host, _, port = given.get("--ray", "").removeprefix("http://").partition(":")
        if int(port or 0) != ports.get(host, {}).get("dashboard"):
            yield f"{name}: {given.get('--ray')} is no dashboard of a head"
    every = {port for each in ports.values() for port in each.values()}
    for each in world.of("NetworkPolicy"):
        named = {port["port"] for rule in each["spec"]["ingress"] for port in rule.get("ports", [])}
        if named - every:
            yield f"policy {each['metadata']['name']}: no head listens on {sorted(named - every)}"
    for name, own in ports.items():
        defaults = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}  # of Ray, where rayStartParams name none
        if own != {port: defaults.get(port) for port in own}:
            yield f"{name}: Ray does not listen on {own}"


def _ports(pod: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for each in pod["containers"] for port in each.get("ports", [])}


def _ray_up_faults(world: World) -> Iterator[str]:
    for each in world.ray_up:
        kinds = each["available_node_types"]
        if each["head_node_type"] not in kinds:
            yield f"ray up: no such kind of node: {each['head_node_type']}"
        workers = [kind for name, kind in kinds.items() if name != each["head_node_type"]]
        if any(kind.get("min_workers", 0) > kind["max_workers"] or kind["max_workers"] > each["max_workers"]
               for kind in workers):  # fmt: skip
            yield "ray up: more workers of a kind than there may be, or fewer than there must be"
        lines = {key: each[key] for key in each if key.endswith("_start_ray_commands")}
        for line in (line for every in lines.values() for line in every):
            if (refused := fault(line)) is not None:
                yield f"ray up: {refused}"
            token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", line)
            if token and token[1] not in each["file_mounts"]:
                yield f"ray up: nothing brings {token[1]} to the nodes"
        head, worker = (options(words_of(lines[f"{who}_start_ray_commands"][-1])) for who in ("head", "worker"))
        if worker.get("--address") != f"$RAY_HEAD_IP:{head.get('--port')}":
            yield f"ray up: workers go to {worker.get('--address')}, the head is on {head.get('--port')}"
        mounted = {option.split(":")[-1] for option in each["docker"]["run_options"] if "--volume" in option}
        made = {line.split()[-1] for line in each["initialization_commands"] if "mkdir" in line}
        if mounted != made:
            yield f"ray up: {sorted(made)} is made, {sorted(mounted)} is mounted"


CHECKS = (
    _label_faults,
    _selector_faults,
    _namespace_faults,
    _queue_faults,
    _flavor_faults,
    _resource_faults,
    _version_faults,
    _volume_faults,
    _command_faults,
    _spec_faults,
    _port_faults,
    _ray_up_faults,
)
