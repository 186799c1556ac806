"""Command lines that manifests hold, read by the commands themselves: Ray's and ours."""

import json
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import typer

from orchestrator.cli import app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, of pydantic
    import ray.scripts.scripts as ray_commands

_USAGE_ERRORS: Any = tuple(
    next(base for base in kind.__mro__ if base.__name__ == "ClickException")
    for kind in (typer.BadParameter, ray_commands.click.BadParameter)
)
"""Of the click package, which Ray uses, and of the copy that typer may carry."""
_VARIABLE = re.compile(r"\$\(?[A-Z_]+\)?")


def words_of(line: str) -> list[str]:
    """A shell command without the variables that are set before it."""
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def fault(line: str | Sequence[str]) -> str | None:
    """What `ray …` or `thresher …` would refuse of a command line; None for one that it takes, and for others."""
    words = words_of(line) if isinstance(line, str) else list(line)
    command: Any = {"ray": ray_commands.cli, "thresher": _ours()}.get(words[0]) if words else None
    if command is None:
        return None
    try:
        while hasattr(command, "commands"):
            if len(words) < 2 or words[1] not in command.commands:
                return f"{' '.join(words)}: {words[0]} has no such command"
            command, words = command.commands[words[1]], words[1:]
        with command.make_context(words[0], words[1:]):
            return None
    except _USAGE_ERRORS as error:
        return f"{' '.join(words)}: {error.format_message()}"


def start_faults(parameters: dict[str, str]) -> Iterator[str]:
    """What `ray start` would refuse of KubeRay's rayStartParams: options without dashes, their values as text."""
    known = {each: option for option in ray_commands.start.params for each in option.opts}
    for name, value in parameters.items():
        option = known.get(f"--{name}")
        if option is None:
            yield f"rayStartParams: ray start has no option --{name}"
        elif getattr(option, "is_flag", False):
            if value not in ("true", "false"):
                yield f"rayStartParams.{name}: {value!r} is neither true nor false"
        elif (refused := fault(["ray", "start", f"--{name}={value}"])) is not None:
            yield f"rayStartParams.{name}: {refused}"
        elif name == "resources" and (words := _resource_fault(value)):
            yield f"rayStartParams.{name}: {words}"


def options(words: Sequence[str]) -> dict[str, str]:
    """`--name=value` and `--name value` of a command line."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, mark, value = word.partition("=")
            after = words[index + 1] if index + 1 < len(words) else ""
            found[name] = value if mark else ("" if after.startswith("--") else after)
    return found


def variables(text: str) -> set[str]:
    """The variables that a text names: $NAME and $(NAME)."""
    return {each.strip("$()") for each in _VARIABLE.findall(text)}


def _resource_fault(value: str) -> str | None:
    try:
        amounts = json.loads(value.strip("'\""))
    except ValueError:
        return f"{value!r} is no JSON"
    good = isinstance(amounts, dict) and all(isinstance(each, int | float) for each in amounts.values())
    return None if good else f"{value!r} gives no amounts"


@cache
def _ours() -> Any:
    return typer.main.get_command(app)
