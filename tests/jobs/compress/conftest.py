"""Every family as a small float ONNX file, with samples: what the schemes of quantization meet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.export import export_onnx
from jobs.models.build import build
from jobs.records import Signature
from jobs.spec.load import model_section

MODELS = {
    "lenet": {"name": "lenet", "args": {"conv_widths": [8, 8], "linear_widths": [32], "batch_norm": True}},
    "resnet": {"name": "resnet", "args": {"depth": 8, "width": 8, "norm": "group"}},
    "mlp": {"name": "mlp", "args": {"hidden": [48, 32]}},
    "lstm": {"name": "lstm", "args": {"hidden": 24, "pool": "mean"}},
    "transformer": {"name": "transformer", "args": {"layers": 1, "width": 32, "heads": 2, "dropout": 0.0}},
    "recommender": {"name": "recommender", "args": {"embedding": 16, "hidden": [32]}},
}
SIGNATURES = {
    "lenet": Signature(kind="image", input_shape=(1, 8, 8), outputs=4),
    "resnet": Signature(kind="image", input_shape=(1, 8, 8), outputs=4),
    "mlp": Signature(kind="vector", input_shape=(30,), outputs=3),
    "lstm": Signature(kind="sequence", input_shape=(9, 4), outputs=3),
    "transformer": Signature(kind="tokens", input_shape=(16,), outputs=64, num_codes=(64,), per_step=True),
    "recommender": Signature(kind="codes", input_shape=(2,), outputs=2, num_codes=(120, 90)),
}


@dataclass(frozen=True)
class Small:
    """A family: its module, the file it was exported to, and 48 samples."""

    name: str
    signature: Signature
    module: Callable[[], nn.Module]
    file: Path
    x: np.ndarray

    @property
    def size(self) -> int:
        return self.file.stat().st_size


def _samples(signature: Signature, count: int = 48) -> np.ndarray:
    rng = np.random.default_rng(0)
    if signature.kind == "codes":
        return np.stack([rng.integers(0, codes, count) for codes in signature.num_codes], axis=1)
    if signature.kind == "tokens":
        return rng.integers(1, signature.num_codes[0], (count, *signature.input_shape))
    x = rng.standard_normal((count, *signature.input_shape)).astype(np.float32)
    if signature.kind == "sequence":
        x[..., -1] = 1.0
    return x


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """families(name) → the family, exported once."""
    made: dict[str, Small] = {}
    folder = tmp_path_factory.mktemp("families")

    def module(name: str) -> nn.Module:
        torch.manual_seed(0)
        built = build(model_section(MODELS[name]), SIGNATURES[name], seed=0).eval()
        with torch.no_grad():
            for parameter in built.parameters():  # outputs far from zero, so that a relative error means something
                parameter.mul_(2.0) if parameter.dim() > 1 and name != "transformer" else None
        return built

    def family(name: str) -> Small:
        if name not in made:
            file = folder / f"{name}.onnx"
            export_onnx(module(name), SIGNATURES[name], file, {"run": "r1"})
            made[name] = Small(name, SIGNATURES[name], lambda: module(name), file, _samples(SIGNATURES[name]))
        return made[name]

    return family
