"""What is wrong with a container file, beyond what hadolint sees: whether it fits this project."""

import io
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
_FLAGS = ("--chown", "--chmod", "--link")


@dataclass
class Stage:
    """One FROM with its instructions."""

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [value for kind, value in self.steps if kind == instruction]


def stages_of(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM with their defaults, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for each in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        kind, value = each["instruction"], each["value"]
        if kind == "FROM":
            image, _, name = value.partition(" AS ")
            stages.append(Stage(image, name))
        elif kind == "ARG" and not stages:
            name, _, default = value.partition("=")
            arguments[name] = default
        elif kind != "COMMENT":
            stages[-1].steps.append((kind, value))
    return arguments, stages


def faults(text: str, tracked: Collection[str], ports: Collection[int]) -> list[str]:
    """What is wrong.

    Args:
        tracked: the paths of all files of the repository.
        ports: those that the manifests name for containers of this image.
    """
    arguments, stages = stages_of(text)
    *bases, last = stages
    return [
        *_base_faults(arguments, bases, last),
        *_python_faults(bases, last),
        *_copy_faults(last, tracked),
        *_install_faults(last),
        *_user_faults(last),
        *_port_faults(last, ports),
    ]


def _base_faults(arguments: dict[str, str], bases: list[Stage], last: Stage) -> Iterator[str]:
    names = {base.name for base in bases}
    prefix, _, variable = last.image.partition("${")
    devices = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if not variable or arguments.get(variable.rstrip("}")) not in devices or devices != {"cpu", "gpu"}:
        yield f"FROM {last.image}: there is {sorted(names)}, and by default {arguments}"
    for base in bases:
        tag = base.image.rpartition(":")[2]
        if not re.match(r"^[0-9]+\.[0-9]+", tag):
            yield f"FROM {base.image}: its version is open"


def _python_faults(bases: list[Stage], last: Stage) -> Iterator[str]:
    """One Python everywhere, which the project allows."""
    found = {base.image: set(re.findall(r"python:?([0-9]\.[0-9]+)", " ".join([base.image, *base.all("RUN")])))
             for base in bases}  # fmt: skip
    versions = set[str]().union(*found.values())
    if len(versions) != 1 or not all(found.values()):
        yield f"Python: one version is wanted in every base: {found}"
    for version in versions:
        if version not in SpecifierSet(PROJECT["requires-python"]):
            yield f"Python: {version} is not {PROJECT['requires-python']}"


def _copy_faults(last: Stage, tracked: Collection[str]) -> Iterator[str]:
    copied = set()
    for value in [*last.all("COPY"), *last.all("ADD")]:
        words = shlex.split(value)
        if any(word.startswith("--") and not word.startswith(_FLAGS) for word in words):
            yield f"COPY {value}: not a copy from the repository"
        *sources, _ = [word for word in words if not word.startswith("--")]
        copied.update(sources)
        for source in sources:
            if source not in tracked and not any(path.startswith(f"{source}/") for path in tracked):
                yield f"COPY: {source} is not in the repository"
    packages = {path.split("/")[0] for path in tracked if path.endswith("/__init__.py")} - {"tests"}
    wanted = {"pyproject.toml", PROJECT["readme"], "LICENSE", *(name for name in packages if name != "examples")}
    if missing := sorted(wanted - copied):
        yield f"COPY: {missing} are needed to install, and missing"


def _install_faults(last: Stage) -> Iterator[str]:
    """Everything comes from the project's own files; torch alone is named again, with the project's bounds."""
    commands = [command.strip() for value in last.all("RUN") for command in value.split("&&")]
    installs = [shlex.split(command)[2:] for command in commands if command.startswith("pip install")]
    bounds = {each.name: each.specifier for each in map(Requirement, PROJECT["dependencies"])}
    for words in installs:
        positional = [word for word in words if not word.startswith("-") and not word.startswith("$")]
        for word in positional:
            if word == "./source":
                continue
            named = Requirement(word)
            if named.name not in bounds or named.specifier != bounds[named.name]:
                yield f"pip install {word}: pyproject.toml says {bounds.get(named.name)}"
    if not any("./source" in words for words in installs):
        yield "the project is not installed"
    for value in last.all("CMD"):
        if '"thresher"' not in value:
            yield f"CMD {value}: not our command"


def _user_faults(last: Stage) -> Iterator[str]:
    users = last.all("USER")
    if not users or not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", users[-1]):
        yield f"USER {users[-1] if users else 'root'}: not the number of a user without rights"
        return
    owners = {word.partition("=")[2] for value in last.all("COPY") for word in value.split() if "--chown" in word}
    if owners != {users[-1]}:
        yield f"COPY --chown: files belong to {sorted(owners)}, the user is {users[-1]}"


def _port_faults(last: Stage, ports: Collection[int]) -> Iterator[str]:
    exposed = {int(port) for value in last.all("EXPOSE") for port in value.split()}
    if missing := sorted(set(ports) - exposed):
        yield f"EXPOSE: {missing} are missing"
