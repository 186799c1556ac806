"""One engine for every layout: DeepSpeed, with our optimizer, our rate and our losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import deepspeed
import numpy as np
import numpy.typing as npt
import torch
from deepspeed import comm
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn
from torch.nn import functional

from jobs.layout import BatchShare
from jobs.models.invariant import GROUPED, SampleDropout
from jobs.spec.train import Adam, AdamW, Optimizer, Sgd
from jobs.train.config import deepspeed_config
from jobs.train.mesh import device

Tensors = dict[str, torch.Tensor]


def build_optimizer(section: Optimizer, parameters: Any) -> torch.optim.Optimizer:
    """The torch optimizer of a spec's section."""
    match section:
        case Sgd():
            return torch.optim.SGD(
                parameters,
                lr=section.lr,
                momentum=section.momentum,
                nesterov=section.nesterov,
                weight_decay=section.weight_decay,
            )
        case AdamW():
            kind: type[torch.optim.Adam] = torch.optim.AdamW
        case Adam():
            kind = torch.optim.Adam
    return kind(
        parameters,
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        # One kernel for all parameters; ZeRO hands over one flat tensor, where it gains nothing.
        fused=device().type in ("cpu", "cuda"),
    )


def _normalize_in_fp32(module: nn.Module) -> None:
    """Lets stock batch normalization compute in fp32, as mixed precision should.

    DeepSpeed turns parameters alone to bf16, and the layer takes no mixture of types.
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return functional.batch_norm(
            x.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            self.momentum,
            self.eps,
        ).to(x.dtype)

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(layer, GROUPED):
            layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]


class Engine:
    """A model under training on every worker of the group.

    Args:
        module: the same initial module on every worker.
        share: how the global batch is divided.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        share: BatchShare,
        *,
        zero_stage: int,
        precision: str,
        gradient_clip: float | None,
    ) -> None:
        self.zero_stage = zero_stage
        self.precision = precision
        self.device = device()
        self.channels_last = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        module = module.to(self.device)
        if precision != "fp32":
            _normalize_in_fp32(module)
        config = deepspeed_config(share, zero_stage=zero_stage, precision=precision, gradient_clip=gradient_clip)
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(optimizer, [p for p in module.parameters() if p.requires_grad]),
            config=config,
            dist_init_required=False,
        )
        self._norms = [layer for layer in self.module.modules() if isinstance(layer, GROUPED)]
        self._dropouts = [layer for layer in self.module.modules() if isinstance(layer, SampleDropout)]
        if self.channels_last and self._plain:
            # After DeepSpeed has broadcast the weights, which it does as flat bytes. ZeRO keeps its own flat copies.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def module(self) -> nn.Module:
        return self._deepspeed.module

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Puts a batch where, and in the type and memory order in which, the model wants it."""
        dtype = torch.float32 if self.precision == "fp32" else torch.bfloat16
        x = x.to(self.device, dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and self.channels_last else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._deepspeed(self.inputs(x))

    def backward_and_step(self, loss: torch.Tensor) -> None:
        """Accumulates; the optimizer steps at the end of the global batch."""
        self._deepspeed.backward(loss)
        self._deepspeed.step()

    def set_rate(self, rate: float) -> None:
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def begin_part(self, seed: int, step: int, ids: npt.NDArray[np.int64]) -> None:
        """Says which samples the next forward pass takes: what dropout's masks are a function of."""
        for layer in self._dropouts:
            layer.begin(seed, step, ids, self.device)

    def end_batch(self) -> None:
        """After the whole global batch: its statistics over all workers go into batch normalization. Collective."""
        if not self._norms:
            return
        found = [layer.take_pending() for layer in self._norms]
        flat = torch.cat([statistics.flatten() for statistics in found])
        if comm.get_world_size() > 1:
            comm.all_reduce(flat)
            flat /= comm.get_world_size()
        for layer, part in zip(self._norms, flat.split([s.numel() for s in found]), strict=True):
            layer.commit(part.view(2, -1))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._deepspeed.train()

    def close(self) -> None:
        """Frees what DeepSpeed holds; the process group stays for the next training."""
        self._deepspeed.destroy()

    # -- the logical state: unsharded tensors by parameter name, the same under every ZeRO stage. They may be the
    #    engine's own: whoever keeps them copies them.

    def parameters(self) -> Tensors:
        """Every parameter, whole and in fp32. All ranks must call it."""
        return {name: self._full(p) for name, p in self.module.named_parameters()}

    def _full(self, parameter: nn.Parameter) -> torch.Tensor:
        if self._plain:
            return parameter.detach().float()
        return safe_get_full_fp32_param(parameter).detach().float()

    @property
    def _plain(self) -> bool:
        """fp32 without ZeRO: DeepSpeed keeps torch's own parameters and states, and its accessors give None."""
        return self.zero_stage == 0 and self.precision == "fp32"

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._deepspeed.optimizer
        return optimizer if self._plain else optimizer.optimizer

    def buffers(self) -> Tensors:
        return {name: value.detach() for name, value in self.module.named_buffers()}

    def optimizer_state(self) -> tuple[Tensors, int]:
        """Every optimizer tensor as `name/state`, whole and in fp32, and the number of steps taken. Collective."""
        keys = self._state_keys()
        tensors: Tensors = {}
        for name, parameter in self.module.named_parameters():
            for key in keys:
                if self._plain:
                    value = self._torch_optimizer.state[parameter][key]
                else:
                    value = safe_get_full_optimizer_state(parameter, key)
                tensors[f"{name}/{key}"] = value.detach().float()
        return tensors, self._optimizer_steps()

    def _state_keys(self) -> list[str]:
        for state in self._torch_optimizer.state.values():
            return sorted(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim() > 0)
        return []

    def _optimizer_steps(self) -> int:
        for state in self._torch_optimizer.state.values():
            return int(state.get("step", 0))
        return 0

    def restore(self, parameters: Tensors, buffers: Tensors, states: Tensors, steps: int, sample: torch.Tensor) -> None:
        """Takes over a logical state. Collective.

        Optimizer states exist only after a step, so one of rate 0 is taken first on `sample`; everything that it
        touched is then overwritten.
        """
        rates = [group["lr"] for group in self._deepspeed.optimizer.param_groups]
        self.set_rate(0.0)
        for _ in range(self._deepspeed.gradient_accumulation_steps()):
            self.backward_and_step(self.forward(sample).float().sum() * 0.0)
        for layer in self._norms:
            layer.pending.clear()
        for group, rate in zip(self._deepspeed.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        keys = self._state_keys()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                self._set(parameter, parameters[name])
                for key in keys:
                    if self._plain:
                        self._torch_optimizer.state[parameter][key].copy_(states[f"{name}/{key}"])
                    else:
                        safe_set_full_optimizer_state(parameter, states[f"{name}/{key}"], key)
            for name, buffer in self.module.named_buffers():
                buffer.copy_(buffers[name])
        for state in self._torch_optimizer.state.values():
            if "step" in state:
                state["step"] = (
                    torch.full_like(state["step"], steps) if isinstance(state["step"], torch.Tensor) else steps
                )

    def _set(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        value = value.to(self.device)
        if self._plain:
            parameter.data.copy_(value)
            return
        safe_set_full_fp32_param(parameter, value)
        # The working copy is a tensor of its own: without this the next forward pass would use stale weights.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.zero_stage == 3):
            if self.zero_stage < 3 or comm.get_rank() == 0:
                parameter.data.copy_(value)
