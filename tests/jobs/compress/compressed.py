"""What the tests of compression share: small samples with a loss, and a model's way to disk, to ONNX and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from jobs.compress.importance import Samples
from jobs.export import export_onnx
from jobs.measure import count_params
from jobs.measure.size import macs
from jobs.models.build import RECIPE_FILE, load_model, save_model
from jobs.models.structure import blocks_left_out
from jobs.records import Signature
from jobs.spec.model import OwnModel
from tests.jobs.models.small_models import FAMILIES, made, samples

PICKED = ("lenet", "mlp", "resnet", "recommender", "lstm of tokens", "lstm of sequences", "transformer of tokens")
PICKED += ("transformer of sequences", "transformer of language", "lstm of language")


def data_of(signature: Signature, count: int = 24) -> Samples:
    """Random samples with random targets, in three batches."""
    x = samples(signature, [1 + index % 9 for index in range(count)])
    generator = torch.Generator().manual_seed(1)
    shape = (count, *signature.output_shape[:-1])
    y = torch.randint(0, signature.outputs, shape, generator=generator)
    size = count // 3
    return Samples(tuple(zip(x.split(size), y.split(size), strict=True)), _loss, float(y.numel()))


def _loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="sum")


def recipe_of(model: OwnModel, signature: Signature) -> dict[str, Any]:
    return {"model": model.model_dump(mode="json"), "signature": signature.to_json()}


def num_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_same_after_reload(family: str, module: nn.Module, folder: Path, **structure: Any) -> None:
    """Saved and loaded again, the module is the same to the last bit, and no pickle was involved."""
    model, signature = FAMILIES[family]
    dropped = {"dropped": blocks_left_out(made(family), module)}
    save_model(module, recipe_of(model, signature) | dropped | structure, folder)
    json.loads((folder / RECIPE_FILE).read_text())
    loaded = load_model(folder).eval()
    assert [*loaded.state_dict()] == [*module.state_dict()]
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    x = samples(signature, [9, 4, 1])
    assert torch.equal(loaded(x), module.eval()(x))
    assert [str(layer) for layer in loaded.modules()] == [str(layer) for layer in module.modules()]


def check_onnx(family: str, module: nn.Module, path: Path) -> dict[str, int]:
    """Exported, the module gives the same for one sample and for five; returns the figures of the file."""
    _, signature = FAMILIES[family]
    export_onnx(module, signature, path, {})
    session = onnxruntime.InferenceSession(path)
    for lengths in ([7], [9, 4, 1, 8, 3]):
        x = samples(signature, lengths)
        with torch.no_grad():
            expected = module.eval()(x).numpy()
        (found,) = session.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    params, nonzero = count_params(path)
    return {"params": params, "nonzero": nonzero, "macs": macs(path, samples(signature, [9]).numpy())}
