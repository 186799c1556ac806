"""Small data of every kind, and small models of every family."""

from math import prod
from typing import Any

import torch
from torch import nn

from jobs.models.build import build
from jobs.records import Signature
from jobs.spec.load import model_section
from jobs.spec.model import OwnModel

VECTOR = Signature(kind="vector", input_shape=(7,), outputs=3)
IMAGE = Signature(kind="image", input_shape=(1, 8, 8), outputs=4)
SEQUENCE = Signature(kind="sequence", input_shape=(9, 4), outputs=3)
TOKENS = Signature(kind="tokens", input_shape=(9,), outputs=3, num_codes=(21,))
LANGUAGE = Signature(kind="tokens", input_shape=(9,), outputs=24, num_codes=(24,), per_step=True)
CODES = Signature(kind="codes", input_shape=(3,), outputs=2, num_codes=(10, 7, 3))

LSTM = {"hidden": 6, "layers": 2}
TRANSFORMER = {"layers": 2, "width": 8, "heads": 2, "dropout": 0.0}

FAMILIES: dict[str, tuple[OwnModel, Signature]] = {
    "lenet": (model_section({"name": "lenet", "args": {"conv_widths": [3], "linear_widths": [8, 6]}}), IMAGE),
    "mlp": (model_section({"name": "mlp", "args": {"hidden": [6, 5, 4]}}), VECTOR),
    "resnet": (model_section({"name": "resnet", "args": {"depth": 8, "width": 8, "norm": "group"}}), IMAGE),
    "recommender": (model_section({"name": "recommender", "args": {"embedding": 4, "hidden": [6]}}), CODES),
    "lstm of sequences": (model_section({"name": "lstm", "args": LSTM | {"pool": "mean"}}), SEQUENCE),
    "lstm of tokens": (model_section({"name": "lstm", "args": LSTM | {"embedding": 5}}), TOKENS),
    "lstm of language": (model_section({"name": "lstm", "args": LSTM}), LANGUAGE),
    "transformer of sequences": (model_section({"name": "transformer", "args": TRANSFORMER}), SEQUENCE),
    "transformer of tokens": (model_section({"name": "transformer", "args": TRANSFORMER | {"max_length": 12}}), TOKENS),
    "transformer of language": (model_section({"name": "transformer", "args": TRANSFORMER}), LANGUAGE),
    "untied transformer": (model_section({"name": "transformer", "args": TRANSFORMER | {"tied": False}}), LANGUAGE),
}
OVER_STEPS = tuple(name for name in FAMILIES if " of " in name)


def made(family: str, seed: int = 0) -> nn.Sequential:
    module = build(*FAMILIES[family], seed=seed).eval()
    assert isinstance(module, nn.Sequential)
    return module


def samples(signature: Signature, lengths: list[int], seed: int = 0) -> torch.Tensor:
    """A sample for each length; data without steps has no use for it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), *signature.input_shape)
    if signature.kind == "codes":
        columns = [torch.randint(0, count, shape[:1], generator=generator) for count in signature.num_codes]
        return torch.stack(columns, dim=1)
    if signature.kind == "tokens":
        x: torch.Tensor = torch.randint(1, signature.num_codes[0], shape, generator=generator)
    else:
        x = torch.randn(shape, generator=generator)
    if signature.kind in ("tokens", "sequence"):
        for sample, length in zip(x, lengths, strict=True):
            if signature.kind == "sequence":
                sample[:, -1] = 1.0
            sample[length:] = 0
    return x


def held_values(module: nn.Module, x: torch.Tensor, loss: Any) -> float:
    """Values that autograd keeps for a sample's backward pass, parameters and the batch itself left out."""
    known = [*module.parameters(), *module.buffers(), x]
    seen = {tensor.untyped_storage().data_ptr() for tensor in known}
    count = 0.0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            known.append(tensor)  # so that its address is not used again
            count += storage.nbytes() / 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(x)
        keep(outputs)  # the loop holds them
        loss(outputs)
    return count / len(x)


def num_values(signature: Signature) -> int:
    return prod(signature.output_shape)
