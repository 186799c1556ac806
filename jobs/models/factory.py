"""A look at the user's own model from outside: built in a process of its own, so that planning imports no torch.

python -m jobs.models.factory '{"name": "package.module:factory", …}'     prints a ModelSummary as JSON
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jobs.errors import Problem, SpecError
from jobs.hashing import digest_json
from jobs.records import ModelSummary
from jobs.spec.model import FactoryModel
from jobs.storage import read_json, write_json

INSPECTION_TIMEOUT_S = 120


def inspect_factory(
    model: FactoryModel, input_shape: tuple[int, ...], outputs: int, *, working_dir: Path, code: str, cache: Path
) -> ModelSummary:
    """The sizes of a user's model. The answer is kept in `cache`, by the digest of the code and the arguments.

    Raises SpecError for a factory that does not import, fails, or returns no module of the right shapes.
    """
    question = {
        "model": model.model_dump(mode="json"),
        "input_shape": list(input_shape),
        "outputs": outputs,
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


def summarize_module(question: dict[str, Any]) -> ModelSummary:
    """Builds the model and runs one batch of two samples through it, counting what passes."""
    import torch
    from torch import nn

    from jobs.models.build import call_factory

    model = FactoryModel.model_validate(question["model"])
    shape, outputs = tuple(question["input_shape"]), question["outputs"]
    module = call_factory(model, shape, outputs).eval()
    counts = {"activations": 0, "macs": 0}

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], result: object) -> None:
        if isinstance(result, torch.Tensor):
            values = result.numel() // 2
            counts["activations"] += values
            if isinstance(layer, nn.Linear):
                counts["macs"] += values * layer.in_features
            elif isinstance(layer, nn.Conv1d | nn.Conv2d):
                counts["macs"] += values * layer.in_channels // layer.groups * layer.weight[0, 0].numel()

    leaves = [layer for layer in module.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        result = module(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise SpecError.at(
            "model.name", f"{model.name} does not take a batch of shape (2, {', '.join(map(str, shape))}): {error}"
        ) from error
    for hook in hooks:
        hook.remove()
    if not isinstance(result, torch.Tensor) or tuple(result.shape) != (2, outputs):
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise SpecError.at("model.name", f"{model.name} gives {got}, and the data needs (batch, {outputs})", model.name)
    return ModelSummary(
        blocks=tuple(
            {"name": name, "layers": [type(child).__name__], "params": sum(p.numel() for p in child.parameters())}
            for name, child in module.named_children()
        ),
        params=sum(p.numel() for p in module.parameters()),
        macs=counts["macs"],
        activations=counts["activations"],
        layout_invariant=False,
    )


def main() -> None:
    sys.path.insert(0, str(Path.cwd()))
    try:
        document: dict[str, Any] = summarize_module(json.loads(sys.argv[1])).to_json()
    except SpecError as error:
        document = {"problem": vars(error.problems[0])}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
