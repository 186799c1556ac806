"""The names in the manifests lead somewhere, their commands are ones, and a planted slip in any of them is seen."""

import json
import re
import shlex
from typing import Any

import pytest
import yaml

from tests.cluster.manifest_commands import fault, start_faults
from tests.cluster.manifest_links import Manifests, broken
from tests.cluster.manifest_schemas import FOLDER, NAMES, documents, problems
from tests.cluster.test_manifests import FREE, keys


def everything() -> Manifests:
    return {name: documents(name) for name in NAMES}


def with_slip(name: str, good: str, bad: str) -> Manifests:
    """All manifests, the first `good` in one of them replaced."""
    text = (FOLDER / name).read_text()
    assert good in text
    return everything() | {name: json.loads(json.dumps(list(yaml.safe_load_all(text.replace(good, bad, 1)))))}


def test_all_names_lead_somewhere():
    assert broken(everything()) == []


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("serve.yaml", "    matchLabels:\n      app.kubernetes.io/name: thresher",
         "    matchLabels:\n      app: thresher", "does not select its own pods"),
        ("serve.yaml", "  selector:\n    app.kubernetes.io/name: thresher\n  ports",
         "  selector:\n    app.kubernetes.io/name: treshers\n  ports", "selects no pod"),
        ("serve.yaml", "targetPort: https", "targetPort: http", "which no pod has"),
        ("serve.yaml", "- --port=8421", "- --port=8412", "listens on 8412"),
        ("serve.yaml", "containerPort: 8421", "containerPort: 8422", "listens on 8421"),
        ("serve.yaml", "port: https, scheme", "port: web, scheme", "is probed on"),
        ("serve.yaml", "thresher-head-svc:8265", "thresher-head:8265", "no dashboard of a head"),
        ("serve.yaml", "thresher-head-svc:8265", "thresher-head-svc:8256", "no dashboard of a head"),
        ("serve.yaml", "--data-root=/data", "--data-roots=/data", "No such option"),
        ("serve.yaml", "- serve\n", "- server\n", "no such command"),
        ("serve.yaml", "--runs=/runs", "--runs=/run", "/run is not mounted"),
        ("serve.yaml", "/tls/tls.crt", "/tls/tls.cert", "has no tls.cert"),
        ("serve.yaml", "$(THRESHER_STORE)", "$(THRESHER_DB)", "must be set"),
        ("serve.yaml", "thresher:0.1.0-cpu", "thresher:0.2.0-cpu", "not one of"),
        ("serve.yaml", "serviceAccountName: thresher", "serviceAccountName: tresher", "no such account"),
        ("serve.yaml", "claimName: thresher-runs", "claimName: thresher-run", "no such volume claim"),
        ("serve.yaml", "{name: scratch, mountPath", "{name: scrach, mountPath", "mounts"),
        ("serve.yaml", "namespace: thresher", "namespace: tresher", "no such namespace"),
        ("namespace.yaml", 'ray.io/is-ray-node: "yes"', 'ray.io/is-ray-node: "true"', "no pod has"),
        ("namespace.yaml", "app.kubernetes.io/name: kuberay-operator", "app.kubernetes.io/name: kuberay", "no pod has"),
        ("namespace.yaml", "enforce: restricted", "enforce: restrict", "no such label"),
        ("namespace.yaml", "port: 6379", "port: 6380", "no head listens on"),
        ("kueue.yaml", "clusterQueue: vision", "clusterQueue: visions", "no such cluster queue"),
        ("kueue.yaml", "- name: h100", "- name: h200", "flavors:"),
        ("kueue.yaml", "{name: cpu, nominalQuota", "{name: cpus, nominalQuota", "covers other resources"),
        ("kueue.yaml", "metadata.name: thresher", "metadata.name: default", "selects no namespace"),
        ("kueue.yaml", "key: nvidia.com/gpu", "key: nvidia.com/gpus", "tolerates something else"),
        ("kueue.yaml", "nvidia.com/gpu.product", "nvidia.com/gpu-product", "no such label"),
        ("ray-job.yaml", "queue-name: vision", "queue-name: visions", "no such queue"),
        ("ray-job.yaml", "queue-name: vision", "queue-name: language", "in another one's queue"),
        ("ray-job.yaml", "queue-name: vision", "queue: vision", "no such label"),
        ("ray-job.yaml", "priority-class: normal", "priority-class: medium", "no such priority class"),
        ("ray-job.yaml", "suspend: true", "suspend: false", "is suspended if and only if"),
        ("ray-job.yaml", "thresher run /specs", "thresher start /specs", "no such command"),
        ("ray-job.yaml", "--address auto", "--adress auto", "No such option"),
        ("ray-job.yaml", "/specs/job.yaml --", "/specs/jobs.yaml --", "has no jobs.yaml"),
        ("ray-job.yaml", "epochs: 12", "epoch: 12", "train.epoch"),
        ("ray-job.yaml", "workers: 2", "workers: 4", "need more nvidia.com/gpu"),
        ("ray-job.yaml", "name: digits-spec}", "name: digit-spec}", "no such config map"),
        ("ray-job.yaml", "rayVersion: 2.60.0", "rayVersion: 2.60.1", "one is wanted"),
        ("ray-cluster.yaml", "num-cpus:", "num_cpus:", "no option --num_cpus"),
        ("ray-cluster.yaml", 'num-cpus: "0"', 'num-cpus: "none"', "is not a valid integer"),
        ("ray-cluster.yaml", "dashboard-host:", "dashbord-host:", "no option --dashbord-host"),
        ("ray-cluster.yaml", "thresher:0.1.0-gpu", "thresher:0.1.0-cpu", "different images"),
        ("ray-cluster.yaml", "limits: {cpu: \"96\", memory: 1000Gi, nvidia.com/gpu: \"8\"}",
         "limits: {cpu: \"96\", memory: 1000Gi, nvidia.com/gpus: \"8\"}", "no such resources"),
        ("ray-cluster.yaml", "containerPort: 8265", "containerPort: 8256", "does not listen on"),
        ("ray-up-aws.yaml", "head_node_type: head", "head_node_type: heads", "no such kind of node"),
        ("ray-up-aws.yaml", "--dashboard-port=8265", "--dashboards-port=8265", "No such option"),
        ("ray-up-aws.yaml", "--port=6379", "--port=6380", "workers go to"),
        ("ray-up-aws.yaml", "  /home/thresher/.ray/auth_token:", "  /home/thresher/.ray/token:", "nothing brings"),
        ("ray-up-aws.yaml", "  - ray stop", "  - ray halt", "no such command"),
        ("ray-up-aws.yaml", "min_workers: 1", "min_workers: 5", "more workers of a kind"),
        ("ray-up-aws.yaml", "mkdir -p /runs", "mkdir -p /run", "is mounted"),
    ],
)  # fmt: skip
def test_a_slip_is_seen(name: str, good: str, bad: str, words: str):
    assert any(words in each for each in broken(with_slip(name, good, bad)))


_HARMLESS = re.compile(
    r"^available_node_types\.[^.]+$"  # a kind of worker may have any name
    r"|^data\.[^.]+$|^stringData\.[^.]+$|^spec\.nodeLabels\."  # tested by name above
)


@pytest.mark.parametrize("name", NAMES)
def test_no_misspelt_name_of_ones_own_passes(name: str):
    """Every key that the schemas leave free is one that something else must agree with."""
    manifests, accepted = everything(), []
    for document in manifests[name]:
        for path, mapping, key in keys(document):
            if not FREE.search(path) or _HARMLESS.search(path) or not isinstance(mapping.get(key), str | int):
                continue
            mapping[key + "x"] = mapping.pop(key)
            if not problems(document) and not _refused(manifests):
                accepted.append(path)
            mapping[key] = mapping.pop(key + "x")
    assert accepted == []


def _refused(manifests: Manifests) -> bool:
    try:
        return broken(manifests) != []
    except KeyError:
        return True  # a name that everything looks for


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_the_commands_that_are_recommended_are_ones(path: Any):
    """Those in the comments at the top, after five spaces."""
    text = path.read_text().replace("\\\n#", "")
    commands = re.findall(r"^#     (?:[A-Z_]+=\S+ )*((?:thresher|ray|kubectl|podman) .*)$", text, re.MULTILINE)
    assert commands or path.name in ("kueue.yaml", "secrets.example.yaml")
    for line in commands:
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
        assert fault(words) is None
        for named in (word for word in words if word.startswith("cluster/manifests/")):
            assert (FOLDER / named.removeprefix("cluster/manifests/")).is_file()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"resources": '{"TPU": 4}'}, None),
        ({"resources": '{"TPU": "four"}'}, "gives no amounts"),
        ({"resources": "{TPU: 4}"}, "no JSON"),
        ({"block": "true"}, None),
        ({"block": "yes"}, "neither true nor false"),
        ({"gpus": "4"}, "no option --gpus"),
    ],
)
def test_ray_itself_says_what_it_takes(parameters: dict[str, str], words: str | None):
    found = list(start_faults(parameters))
    assert found == [] if words is None else words in found[0]
