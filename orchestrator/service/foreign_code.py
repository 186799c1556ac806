"""Modules of users, looked at and never run: what their text alone shows to be wrong.

Python's parser may end its process over a text that was written for that, so it works in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

from jobs.errors import SpecError
from jobs.spec import JobSpec

_PARSE_S = 10.0
_MOST_BYTES = 1 << 20
_PARSER = """
import ast, json, sys
try:
    tree = ast.parse(sys.stdin.buffer.read())
except SyntaxError as error:
    print(json.dumps({"wrong": f"{type(error).__name__}: {error.msg}", "line": error.lineno}))
    sys.exit()
names, certain = set(), True
for node in ast.walk(tree):
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            names.add(node.name)
        case ast.Name():
            names.add(node.id)
        case ast.ImportFrom() | ast.Import():
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
            certain = certain and not any(alias.name == "*" for alias in node.names)
at_run_time = {"globals", "locals", "vars", "exec", "eval", "setattr", "sys", "__getattr__"}
certain = certain and not names & at_run_time
print(json.dumps({"names": sorted(names) if certain else None}))
"""


def check_factory(spec: JobSpec, code: Path) -> None:
    """Refuses a factory whose module does not parse, or nowhere has its name. Raises SpecError.

    What the parser cannot tell is left to the job: a long text, one that it takes long over, names made at run time.
    """
    module, _, factory = spec.model.name.partition(":")
    place = code.joinpath(*module.split("."))
    file = place / "__init__.py" if (place / "__init__.py").is_file() else place.with_suffix(".py")
    if file.stat().st_size > _MOST_BYTES:
        return
    try:
        command = [sys.executable, "-I", "-S", "-c", _PARSER]
        done = subprocess.run(command, input=file.read_bytes(), capture_output=True, timeout=_PARSE_S, check=True)
        found = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return
    if "wrong" in found:
        where = f"{file.relative_to(code)}, line {found['line']}"
        raise SpecError.at("model.name", f"{spec.model.name} failed: {found['wrong']} ({where})", spec.model.name)
    if found["names"] is not None and factory not in found["names"]:
        raise SpecError.at("model.name", f"{module} has no function {factory}", spec.model.name)
