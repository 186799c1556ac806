"""From the body of a submission to a job that can be queued, or to the problems that `thresher plan` would name."""

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobs import data
from jobs.errors import Problem, SpecError
from jobs.hashing import digest_json
from jobs.layout import share_batch
from jobs.spec import JobSpec
from jobs.spec.model import ForeignModel
from jobs.spec.paths import named_files
from jobs.spec.read import parse_json, parse_yaml
from jobs.spec.train import Layout
from orchestrator.planning.plan import check_fit, count_steps, plan_job
from orchestrator.runs import Storage
from orchestrator.scheduling import Demand, Job, Node, Project, Snapshot, refusal
from orchestrator.service.answers import Refusal, not_found
from orchestrator.service.foreign_code import check_factory
from orchestrator.service.settings import ServiceSettings

JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


@dataclass(frozen=True)
class Prepared:
    """A spec that may be queued.

    Attributes:
        document: as it is kept: `code.working_dir` is where the uploaded modules will be.
        digest: of what was sent; tells a repeated submission from another one.
    """

    spec: JobSpec
    document: dict[str, Any]
    digest: str

    @property
    def demand(self) -> Demand:
        return demand_of(self.spec)

    @property
    def heavy(self) -> bool:
        """Whether the model is built to be planned, which takes seconds."""
        return isinstance(self.spec.model, ForeignModel) and not self.spec.uses_own_code


def read_body(body: bytes, content_type: str) -> dict[str, Any]:
    """The document. Raises Refusal (415) for another kind of content, SpecError for one that cannot be read."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    charset = parameters.replace(" ", "").lower()
    if kind not in JSON_TYPES + YAML_TYPES or (charset and charset != "charset=utf-8"):
        raise Refusal(415, "a spec is JSON or YAML, in UTF-8", allowed=", ".join(JSON_TYPES + YAML_TYPES))
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.at("", f"the body is not UTF-8 text (byte {error.start})") from None
    document = parse_json(text, "the body") if kind in JSON_TYPES else parse_yaml(text, "the body")
    _check_text(document)
    return document


def _check_text(document: dict[str, Any]) -> None:
    """JSON can hold halves of characters, and characters that no database takes."""
    text = json.dumps(document, ensure_ascii=False, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SpecError.at("", "the body holds half a character (an unpaired surrogate)") from None
    if "\\u0000" in text:
        raise SpecError.at("", "the body holds a null character")


def prepare(
    document: dict[str, Any], project: str | None, code: Path | None, code_sha256: str | None, settings: ServiceSettings
) -> Prepared:
    """What was asked for, checked as far as can be without looking at any data.

    Args:
        project: the only one that the caller may submit to, which is then the default; None: any.
        code: the folder with the user's modules, unpacked.

    Raises SpecError, and Refusal (404) for another project.
    """
    if project is not None and "project" not in document:
        document = {**document, "project": project}
    asked = dict(document)
    if isinstance(asked.get("code"), dict):
        asked["code"] = {**asked["code"], "working_dir": "."}
    digest = sha256(json.dumps([asked, code_sha256], sort_keys=True, default=str).encode()).hexdigest()
    spec = JobSpec.parse(asked)
    if project is not None and spec.project != project:
        raise not_found(f"project: {spec.project}")
    if problems := [*_outside(asked, settings.data_roots), *_code_problems(spec, code)]:
        raise SpecError(problems)
    return Prepared(spec, spec.document(), digest)


def plan(prepared: Prepared, code: Path | None, settings: ServiceSettings) -> None:
    """Raises SpecError for what `thresher plan` refuses.

    The user's own factory is not called: its code runs on the cluster alone, and what only it could tell is said by
    the job, in the same words.
    """
    spec = prepared.spec
    if spec.uses_own_code:
        info = data.inspect(spec.data, spec.train.loss)
        check_fit(spec, info)
        count_steps(spec, info)
        if isinstance(spec.layout, Layout):
            layout = spec.layout.parallel
            share_batch(spec.train.batch_size, layout.data, spec.layout.micro_batch, None, layout.pipeline)
        if code is not None:
            check_factory(spec, code)
        return
    plan_job(spec, Storage(settings.runs))


def demand_of(spec: JobSpec) -> Demand:
    """The gang: as many workers as the job may have."""
    resources = spec.resources
    return Demand.of(spec.num_workers, CPU=resources.cpus_per_worker, GPU=resources.gpus_per_worker)


def limit_ms(spec: JobSpec) -> int | None:
    """How long an attempt may take."""
    seconds = spec.resources.time_limit_s
    return None if seconds is None else 1000 * seconds


def check_feasible(
    prepared: Prepared, now_ms: int, nodes: tuple[Node, ...] | None, projects: tuple[Project, ...]
) -> None:
    """Raises SpecError, with the numbers, for a gang that the idle cluster or the project's quota could never hold.

    A cluster that does not answer refuses nothing: the job waits for it.
    """
    if not nodes:
        return
    spec = prepared.spec
    job = Job(spec.name, spec.project, prepared.demand, spec.priority, now_ms)
    if reason := refusal(job, Snapshot(now_ms, nodes, projects=projects)):
        raise SpecError.at("resources", reason)


def spec_digest(spec: JobSpec) -> str:
    """Of everything that the job asks for."""
    return digest_json(spec.resolved())


def _outside(document: dict[str, Any], roots: tuple[Path, ...]) -> list[Problem]:
    """Files that jobs here may not name. Said of any such path alike, whether something is there or not."""
    problems = []
    for section, key, path in named_files(document):
        value = section[key]
        if not os.path.isabs(value) or not any(_below(value, root) for root in roots):
            allowed = ", ".join(f"a path below {root}" for root in roots) or "built-in data; see --data-root"
            problems.append(Problem(path, "is not a file that jobs may use", value, allowed))
    return problems


def _below(path: str, root: Path) -> bool:
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _code_problems(spec: JobSpec, code: Path | None) -> list[Problem]:
    if not spec.uses_own_code:
        what = "modules were sent, but the model is not one of them"
        return [Problem("model.name", what, spec.model.name, "package.module:factory")] if code else []
    module = spec.model.name.partition(":")[0]
    if code is None:
        return [Problem("code", "the modules of a model of your own must be sent along", spec.model.name)]
    place = code.joinpath(*module.split("."))
    if not place.with_suffix(".py").is_file() and not (place / "__init__.py").is_file():
        there = sorted(path.relative_to(code).as_posix() for path in code.rglob("*.py"))[:10]
        return [Problem("model.name", f"no module {module} was sent", spec.model.name, ", ".join(there) or None)]
    return []
