"""A look at a model that is not ours from outside: built in a process of its own, so that planning imports no torch.

python -m jobs.models.factory '{"model": {"name": "package.module:factory", …}, …}'     prints a ModelSummary as JSON
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.errors import Problem, SpecError
from jobs.hashing import digest_json
from jobs.models.pretrained import located
from jobs.records import ModelSummary, Signature
from jobs.spec.model import ForeignModel
from jobs.storage import read_json, write_json

INSPECTION_TIMEOUT_S = 120


def inspect_factory(
    model: ForeignModel, signature: Signature, *, working_dir: Path, code: str, cache: Path
) -> ModelSummary:
    """The sizes of a user's model. The answer is kept in `cache`, by the digest of the code and the arguments.

    Args:
        code: digest of the user's modules, or of the folder that the weights are in.

    Raises SpecError for a factory that does not import, fails, or returns no module of the right shapes.
    """
    question = {
        "model": located(model).model_dump(mode="json"),
        "signature": signature.to_json(),
        "code": code,
    }
    answer = cache / f"{digest_json(question)[:32]}.json"
    if answer.exists():
        return ModelSummary.from_json(read_json(answer))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.models.factory", json.dumps(question)],
            cwd=working_dir,
            capture_output=True,
            text=True,
            timeout=INSPECTION_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SpecError.at("model.name", f"{model.name} took longer than {INSPECTION_TIMEOUT_S} s to build") from None
    lines = done.stdout.strip().splitlines()
    try:
        document = json.loads(lines[-1]) if lines else {}
    except ValueError:
        document = {}
    if "problem" in document:
        raise SpecError([Problem(**document["problem"])])
    if "params" not in document:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise SpecError.at("model.name", f"{model.name} failed: {last[0]}", model.name)
    summary = ModelSummary.from_json(document)
    write_json(answer, summary.to_json())
    return summary


def main() -> None:
    from jobs.models.inspection import summarize_module

    sys.path.insert(0, str(Path.cwd()))
    try:
        document: dict[str, Any] = summarize_module(json.loads(sys.argv[1])).to_json()
    except SpecError as error:
        document = {"problem": vars(error.problems[0])}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
