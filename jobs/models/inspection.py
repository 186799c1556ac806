"""The look itself: a model that is not ours is built, and two samples go through it. See `jobs.models.factory`."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from jobs.errors import SpecError
from jobs.models.build import build, shared_tensors
from jobs.records import BlockSummary, ModelSummary, Signature
from jobs.spec.load import model_section
from jobs.spec.model import ForeignModel, HuggingFaceModel


def summarize_module(question: dict[str, Any]) -> ModelSummary:
    """Builds the model and runs a batch of two samples through it, block by block, counting what passes."""
    model: ForeignModel = model_section(question["model"])
    signature = Signature.from_json(question["signature"])
    module = build(model, signature, seed=0).eval()
    example = torch.ones if signature.kind in ("tokens", "sequence") else torch.zeros  # steps of 0 are none
    batch = example(2, *signature.input_shape, dtype=getattr(torch, signature.input_dtype))
    blocks, no_pipeline = _blocks(module)
    if isinstance(model, HuggingFaceModel):
        no_pipeline = "a model of Hugging Face's is a single block"
    measured: list[_Measured] = []
    held = _Held(module, batch)
    x: Any = batch
    try:
        for block in blocks.values():
            measured.append(_measure(block, x, held))
            x = measured[-1].output
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = ", ".join(map(str, batch.shape))
        raise SpecError.at("model.name", f"{model.name} does not take a batch of shape ({shape}): {error}") from error
    _check_output(model, module, signature, batch, x)
    if no_pipeline == "":
        no_pipeline = _unpassable(blocks, measured)
    outputs = 2 * prod(signature.output_shape)  # as `registry.summarize` counts them
    summaries = [
        BlockSummary(
            name=name,
            layers=tuple(type(layer).__name__ for layer in block.children()) or (type(block).__name__,),
            output_shape=tuple(found.output.shape[1:]) if isinstance(found.output, torch.Tensor) else (),
            params=sum(p.numel() for p in block.parameters()),
            macs=found.macs,
            activations=found.activations + (outputs if found is measured[-1] else 0),
        )
        for (name, block), found in zip(blocks.items(), measured, strict=True)
    ]
    return ModelSummary(
        blocks=tuple(summaries),
        params=sum(p.numel() for p in module.parameters()),
        macs=sum(summary.macs for summary in summaries),
        activations=sum(summary.activations for summary in summaries),
        layout_invariant=False,
        no_tensor="how a model that Thresher did not make is split is not known",
        no_pipeline=no_pipeline,
    )


@dataclass(frozen=True)
class _Measured:
    output: Any
    macs: int
    activations: int


class _Held:
    """Counts what autograd keeps for the backward pass, each piece of memory once, without parameters and batch."""

    def __init__(self, module: nn.Module, batch: torch.Tensor) -> None:
        # The tensors are kept too, so that no address is used twice.
        self._known = [*module.parameters(), *module.buffers(), batch]
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in self._known}
        self.bytes = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._known.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


class _Operations(TorchDispatchMode):
    """Counts multiply-accumulates by torch's formulas, and in the fused kernels of the CPU, for which it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mkldnn_rnn_layer.default:
            x, *weights = args[:3]
            self.macs += x.shape[0] * x.shape[1] * sum(weight.numel() for weight in weights)
        elif func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.macs += sdpa_flop_count(*(factor.shape for factor in args[:3])) // 2
        elif formula := flop_registry.get(func.overloadpacket):
            self.macs += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output


def _measure(block: nn.Module, x: Any, held: _Held) -> _Measured:
    """Runs a block on two samples."""
    before = held.bytes
    with torch.autograd.graph.saved_tensors_hooks(held.keep, lambda tensor: tensor), _Operations() as operations:
        output = block(x)
    return _Measured(output, macs=operations.macs // 2, activations=(held.bytes - before) // 4 // 2)


def _blocks(module: nn.Module) -> tuple[dict[str, nn.Module], str]:
    """What runs one after another, and why that can't be a pipeline; empty if it can."""
    blocks = dict(module.named_children())
    if type(module).forward is not nn.Sequential.forward or len(blocks) < 2:
        return {"model": module}, "a pipeline needs an nn.Sequential of at least two blocks"
    for alias, name in shared_tensors(module).items():
        if alias.partition(".")[0] != name.partition(".")[0]:
            return blocks, f"two blocks share a parameter: {name} and {alias}"
    return blocks, ""


def _unpassable(blocks: dict[str, nn.Module], measured: list[_Measured]) -> str:
    for name, found in zip(blocks, measured, strict=True):
        values = found.output if isinstance(found.output, tuple) else (found.output,)
        if not all(isinstance(value, torch.Tensor) for value in values):
            return f"block {name} gives a {type(found.output).__name__}: stages pass tensors, or tuples of them"
    return ""


def _check_output(
    model: ForeignModel, module: nn.Module, signature: Signature, batch: torch.Tensor, output: Any
) -> None:
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (2, *signature.output_shape):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        needed = ", ".join(map(str, signature.output_shape))
        raise SpecError.at("model.name", f"{model.name} gives {got}, and the data needs (batch, {needed})", model.name)
    if not signature.per_step or batch.shape[1] == 1:
        return
    changed = batch.clone()
    changed[:, -1] = signature.num_codes[0] - 1
    with torch.no_grad():
        same = torch.allclose(module(changed)[:, :-1], output[:, :-1], rtol=1e-3, atol=1e-4)
    if not same:
        raise SpecError.at(
            "model.name",
            f"{model.name} is no language model: what it says of a step depends on steps after it",
            model.name,
            "a model that looks only to the left (causal attention, a recurrence)",
        )
