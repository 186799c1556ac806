"""Profiles of clusters: the shipped ones, bad ones, and what a job may ask of one."""

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile, check_resources, on_cluster
from jobs.spec.load import with_values

PROFILES = Path(__file__).parents[2] / "examples" / "clusters"
GPUS: dict[str, Any] = {
    "name": "gpus",
    "nodes": 2,
    "gpus_per_node": 4,
    "cpus_per_node": 8,
    "memory_gb": 16,
    "tflops": 100,
    "within_gb_per_s": 100,
    "between_gb_per_s": 10,
}
CPUS: dict[str, Any] = {
    "name": "cpus",
    "nodes": 1,
    "gpus_per_node": 0,
    "cpus_per_node": 8,
    "memory_gb": 2.5,
    "tflops": {"fp32": 0.05},
    "within_gb_per_s": 2,
}
JOB: dict[str, Any] = {
    "name": "job",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_profile_is_valid(path: Path) -> None:
    assert ClusterProfile.load(path).devices > 1


BAD: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "no nodes": ({"nodes": 0}, "cluster.nodes", ("got 0", "at least 1")),
    "fewer than none": ({"nodes": -3}, "cluster.nodes", ("got -3", "at least 1")),
    "half a node": ({"nodes": 1.5}, "cluster.nodes", ("got 1.5", "a whole number")),
    "text for a count": ({"nodes": "two"}, "cluster.nodes", ("got 'two'", "a whole number")),
    "a count in quotes": ({"nodes": "2"}, "cluster.nodes", ("got '2'", "a number")),
    "truth for a count": ({"gpus_per_node": True}, "cluster.gpus_per_node", ("got True", "a number")),
    "accelerators below none": ({"gpus_per_node": -1}, "cluster.gpus_per_node", ("got -1", "at least 0")),
    "no memory": ({"memory_gb": 0}, "cluster.memory_gb", ("got 0", "above 0")),
    "memory that is no number": ({"memory_gb": float("nan")}, "cluster.memory_gb", ("'nan'", "finite")),
    "endless links": ({"between_gb_per_s": float("inf")}, "cluster.between_gb_per_s", ("'inf'", "finite")),
    "links backwards": ({"within_gb_per_s": -450}, "cluster.within_gb_per_s", ("got -450", "above 0")),
    "no arithmetic": ({"tflops": 0}, "cluster.tflops", ("got 0", "above 0")),
    "operations for teraoperations": ({"tflops": 989e12}, "cluster.tflops", ("989", "at most 100000")),
    "the same, by precision": ({"tflops": {"bf16": 1e6}}, "cluster.tflops.bf16", ("1000000", "at most 100000")),
    "an unknown precision": ({"tflops": {"bf61": 1.0}}, "cluster.tflops.bf61", ("unknown key", "'bf16'")),
    "more than the peak": ({"efficiency": 1.2}, "cluster.efficiency", ("got 1.2", "at most 1")),
    "latency backwards": ({"latency_us": {"within": -1}}, "cluster.latency_us.within", ("got -1", "at least 0")),
    "a misspelling": ({"memery_gb": 80}, "cluster.memery_gb", ("unknown key", "did you mean 'memory_gb'")),
    "a missing key": ({"memory_gb": None}, "cluster.memory_gb", ("a number",)),
    "a host without links": ({"host": {"memory_gb": 9}}, "cluster.host.link_gb_per_s", ("required",)),
    "a list for a section": ({"host": [1]}, "cluster.host", ("a mapping",)),
    "no links between nodes": ({"between_gb_per_s": None}, "cluster.between_gb_per_s", ("2 nodes", "GB/s")),
    "no links within": ({"within_gb_per_s": None}, "cluster.within_gb_per_s", ("4 devices", "GB/s")),
    "no devices": ({"gpus_per_node": 0, "cpus_per_node": None}, "cluster.cpus_per_node", ("1 to 4096",)),
    "too many devices": ({"nodes": 60_000}, "cluster.nodes", ("240000", "at most 16384")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_profile_is_refused_at_its_path(name: str) -> None:
    values, path, parts = BAD[name]
    with pytest.raises(SpecError) as caught:
        ClusterProfile.parse(with_values(GPUS, values))
    texts = [str(problem) for problem in caught.value.problems if problem.path == path]
    assert texts, caught.value
    assert any(all(part in text for part in parts) for text in texts), texts


def test_every_problem_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        ClusterProfile.parse(GPUS | {"nodes": 0, "memory_gb": -1, "tflops": 0})
    assert {problem.path for problem in caught.value.problems} == {
        "cluster.nodes",
        "cluster.memory_gb",
        "cluster.tflops",
    }


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nodes: [", "not valid YAML"),
        ("- 1", "a mapping of keys"),
        ("nodes: 1\nnodes: 2", "stands twice"),
        ("\udcff", "not UTF-8"),
        ("", "a mapping of keys"),
    ],
)
def test_what_is_no_profile_is_refused(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SpecError, match=part) as caught:
        ClusterProfile.load(path)
    assert caught.value.problems[0].path == "cluster"
    assert "train" not in str(caught.value)


def test_a_missing_file_has_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "8xh100.yaml").write_text("x")
    with pytest.raises(SpecError, match=r"did you mean .*8xh100\.yaml"):
        ClusterProfile.load(tmp_path / "8xh10.yaml")
    with pytest.raises(SpecError, match="is a folder, not a cluster profile"):
        ClusterProfile.load(tmp_path)


def asked(profile: dict[str, Any], **resources: Any) -> tuple[JobSpec, list[str]]:
    cluster = ClusterProfile.parse(profile)
    document, notes = on_cluster(JOB | ({"resources": resources} if resources else {}), cluster)
    spec = JobSpec.parse(document)
    check_resources(spec, cluster)
    return spec, notes


class TestResources:
    def test_what_the_spec_leaves_open_is_all_of_the_cluster(self) -> None:
        spec, notes = asked(GPUS)
        assert (spec.num_workers, spec.resources.gpus_per_worker) == (8, 1)
        assert len(notes) == 2
        assert "all 8" in notes[1]
        spec, notes = asked(CPUS)
        assert (spec.num_workers, spec.resources.gpus_per_worker) == (8, 0)

    def test_what_it_says_stands(self) -> None:
        spec, notes = asked(GPUS, workers=3, gpus_per_worker=1)
        assert (spec.num_workers, notes) == (3, [])

    def test_workers_of_several_cpus_are_fewer(self) -> None:
        assert asked(CPUS, cpus_per_worker=3)[0].num_workers == 2
        assert asked(GPUS, cpus_per_worker=4)[0].num_workers == 4  # two of four accelerators have CPUs

    @pytest.mark.parametrize(
        ("profile", "resources", "path", "parts"),
        [
            (GPUS, {"workers": 9}, "resources.workers", ("9 workers", "2 nodes", "at most 8")),
            (CPUS, {"workers": 9}, "resources.workers", ("9 workers", "8 CPUs", "at most 8")),
            (GPUS, {"workers": 8, "cpus_per_worker": 4}, "resources.workers", ("4 CPUs a worker", "at most 4")),
            (CPUS, {"gpus_per_worker": 1}, "resources.gpus_per_worker", ("no accelerators", "allowed: 0")),
            (GPUS, {"gpus_per_worker": 0}, "resources.gpus_per_worker", ("4 accelerators", "allowed: 1")),
            (CPUS, {"cpus_per_worker": 9}, "resources.cpus_per_worker", ("8 CPUs", "1 to 8")),
            (GPUS, {"workers": [2, 64]}, "resources.workers", ("64 workers", "at most 8")),
        ],
    )
    def test_more_than_there_is_is_refused_with_the_figures(
        self, profile: dict[str, Any], resources: dict[str, Any], path: str, parts: tuple[str, ...]
    ) -> None:
        with pytest.raises(SpecError) as caught:
            asked(profile, **resources)
        (problem,) = caught.value.problems
        assert problem.path == path
        assert all(part in str(problem) for part in parts), problem

    def test_fp16_goes_where_there_are_accelerators(self) -> None:
        job = with_values(JOB, {"train.precision": "fp16"})
        assert JobSpec.parse(on_cluster(job, ClusterProfile.parse(GPUS))[0]).train.precision == "fp16"
        with pytest.raises(SpecError, match="fp16"):
            JobSpec.parse(on_cluster(job, ClusterProfile.parse(CPUS))[0])

    def test_resources_that_are_none_are_left_to_the_spec(self) -> None:
        document, notes = on_cluster(JOB | {"resources": 3}, ClusterProfile.parse(GPUS))
        assert (document["resources"], notes) == (3, [])

    def test_a_precision_without_a_figure_is_refused(self) -> None:
        with pytest.raises(SpecError, match=r"cluster\.tflops\.bf16.*fp32"):
            ClusterProfile.parse(CPUS).teraflops("bf16")
