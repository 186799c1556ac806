"""A profile of a cluster that is planned for, and need not be here: nodes, devices, memory, links, arithmetic.

A *device* is what a worker has for itself: an accelerator, or on a cluster of processors a CPU (a worker then has
`resources.cpus_per_worker` of them). Units are decimal: 1 GB is 10⁹ bytes, 1 TFLOP/s is 10¹² operations a second, a
multiply-accumulate is two of them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from jobs.errors import Problem, SpecError
from jobs.section import Section, illegal
from jobs.spec.job import JobSpec
from jobs.spec.load import validated, with_values
from jobs.spec.read import read_document

MAX_DEVICES = 65_536
"""As many workers as a spec may ask for."""

Precision = Literal["fp32", "bf16", "fp16"]
Gigabytes = Annotated[float, Field(gt=0.0, le=1e6)]
Rate = Annotated[float, Field(gt=0.0, le=1e6)]
"""GB/s in one direction."""
Teraflops = Annotated[float, Field(gt=0.0, le=1e5)]
Microseconds = Annotated[float, Field(ge=0.0, le=1e6)]


class TeraflopsByPrecision(Section):
    fp32: Teraflops | None = None
    bf16: Teraflops | None = None
    fp16: Teraflops | None = None


class Latency(Section):
    """Microseconds from one device to another, for a message of no size."""

    within: Microseconds = 0.0
    between: Microseconds = 0.0


class Host(Section):
    """The machine around the accelerators of a node: what `layout.offload` moves things to."""

    memory_gb: Gigabytes
    """Of a node."""
    link_gb_per_s: Rate
    """Between the host and each accelerator."""
    memory_gb_per_s: Rate
    """Of the host's memory, for all accelerators of the node together: what an update on processors is bound by."""


class ClusterProfile(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    nodes: int = Field(ge=1, le=MAX_DEVICES)
    gpus_per_node: int = Field(ge=0, le=1024)
    """Accelerators; 0: a cluster of processors, whose devices are CPUs."""
    cpus_per_node: int | None = Field(default=None, ge=1, le=4096)
    """Needed without accelerators; with them it bounds `resources.cpus_per_worker`."""
    memory_gb: Gigabytes
    """Of a device: an accelerator's own, or a CPU's share of its node's."""
    tflops: Teraflops | TeraflopsByPrecision
    """Of a device, dense: one figure, or by precision."""
    efficiency: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of `tflops` that kernels reach. Left at 1, times are lower bounds."""
    within_gb_per_s: Rate | None = None
    """What a device sends to others of its node; needed where a node has more than one."""
    between_gb_per_s: Rate | None = None
    """What a device sends to other nodes while all others do too; needed where there is more than one node."""
    latency_us: Latency = Latency()
    host: Host | None = None
    """Without it, nothing is planned to be offloaded from accelerators."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gpus_per_node == 0 and self.cpus_per_node is None:
            raise illegal("without accelerators the CPUs of a node are needed", "1 to 4096", at="cpus_per_node")
        if self.devices > MAX_DEVICES:
            what = f"{self.nodes} nodes of {self.devices_per_node} devices are {self.devices}, more than a job may have"
            raise illegal(what, f"at most {MAX_DEVICES // self.devices_per_node}", at="nodes")
        if self.devices_per_node > 1 and self.within_gb_per_s is None:
            what = f"a node has {self.devices_per_node} devices, and nothing is said of the links between them"
            raise illegal(what, "GB/s", at="within_gb_per_s")
        if self.nodes > 1 and self.between_gb_per_s is None:
            what = f"there are {self.nodes} nodes, and nothing is said of the links between them"
            raise illegal(what, "GB/s", at="between_gb_per_s")
        return self

    @property
    def accelerated(self) -> bool:
        return self.gpus_per_node > 0

    @property
    def devices_per_node(self) -> int:
        return self.gpus_per_node or self.cpus_per_node or 1

    @property
    def devices(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def device(self) -> str:
        return "accelerator" if self.accelerated else "CPU"

    def teraflops(self, precision: Precision) -> float:
        """Raises SpecError where the profile has no figure for it."""
        if isinstance(self.tflops, float):
            return self.tflops
        found: float | None = getattr(self.tflops, precision)
        if found is None:
            known = [name for name in TeraflopsByPrecision.model_fields if getattr(self.tflops, name) is not None]
            what = f"the job trains in {precision}, and the profile {self.name} has no figure for it"
            raise SpecError.at(f"cluster.tflops.{precision}", what, None, f"TFLOP/s; there are {', '.join(known)}")
        return found

    def workers_per_node(self, cpus_per_worker: int) -> int:
        """How many workers a node holds, each whole."""
        by_cpus = self.cpus_per_node // cpus_per_worker if self.cpus_per_node else self.gpus_per_node
        return min(by_cpus, self.gpus_per_node) if self.accelerated else by_cpus

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a YAML or JSON file. Raises SpecError, its paths below `cluster`."""
        try:
            document = read_document(Path(path), what="cluster profile", keys="name, nodes, gpus_per_node, …")
        except SpecError as error:
            raise SpecError([_below(problem) for problem in error.problems]) from None
        return cls.parse(document)

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """Validates a document. Raises SpecError with every problem found."""
        found: Self = validated(_named(cls), {"cluster": document}).cluster  # type: ignore[attr-defined]
        return found


def _named(profile: type[ClusterProfile]) -> type[Section]:
    """A section whose one key is `cluster`, so that what is wrong with a profile stands at a path below it."""
    from pydantic import create_model

    return create_model("Named", __base__=Section, cluster=(profile, ...))


def _below(problem: Problem) -> Problem:
    path = f"cluster.{problem.path}" if problem.path else "cluster"
    return Problem(path, problem.message, problem.value, problem.allowed, problem.nearest)


def on_cluster(document: dict[str, Any], profile: ClusterProfile) -> tuple[dict[str, Any], list[str]]:
    """A job's document with what it leaves open about its resources taken from the cluster, and what that was.

    Whatever the document says stands; `check_resources` refuses what the cluster does not have.
    """
    resources = document.get("resources", {})
    if not isinstance(resources, dict):
        return document, []
    values: dict[str, Any] = {}
    notes: list[str] = []
    if profile.accelerated and "gpus_per_worker" not in resources:
        values["resources.gpus_per_worker"] = 1
        notes.append("resources.gpus_per_worker is not in the spec: one accelerator for each worker")
    cpus = resources.get("cpus_per_worker", 1)
    if "workers" not in resources and isinstance(cpus, int) and cpus >= 1:
        workers = profile.nodes * profile.workers_per_node(cpus)
        if workers:
            values["resources.workers"] = workers
            notes.append(f"resources.workers is not in the spec: planned for all {workers} that {profile.name} holds")
    return with_values(document, values), notes


def check_resources(spec: JobSpec, profile: ClusterProfile) -> None:
    """Refuses a job that asks for what the cluster does not have, with the figures of both."""
    resources, node = spec.resources, f"of {profile.name}"
    if resources.gpus_per_worker and not profile.accelerated:
        what = f"the nodes {node} have no accelerators (cluster.gpus_per_node is 0)"
        raise SpecError.at("resources.gpus_per_worker", what, resources.gpus_per_worker, "0")
    if profile.accelerated and not resources.gpus_per_worker:
        what = f"the figures {node} are those of its {profile.gpus_per_node} accelerators a node, not of processors"
        raise SpecError.at("resources.gpus_per_worker", what, 0, "1")
    per_node = profile.workers_per_node(resources.cpus_per_worker)
    if not per_node:
        what = f"a worker lies on one node, and those {node} have {profile.cpus_per_node} CPUs"
        raise SpecError.at(
            "resources.cpus_per_worker", what, resources.cpus_per_worker, f"1 to {profile.cpus_per_node}"
        )
    most = profile.nodes * per_node
    if spec.num_workers > most:
        what = (
            f"{spec.num_workers} workers on {profile.nodes} nodes {node}, each of which holds {per_node} "
            f"({profile.devices_per_node} {profile.device}s, {resources.cpus_per_worker} CPUs a worker)"
        )
        raise SpecError.at("resources.workers", what, spec.num_workers, f"at most {most}")
