"""A model's state as logical tensors: whole, by the names of parameters, the same under every layout.

What an engine holds of them is a matter of its layout; here is how it is found, put together, and taken over.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn

from jobs.layout import Coordinate
from jobs.train.mesh import Mesh


@dataclass(frozen=True)
class Held:
    """A logical tensor: all of it, or the part that this rank and its data-parallel peers hold.

    Attributes:
        name: `param/…`, `buffer/…` or `optimizer/<parameter>/<state>`.
        value: in fp32; the engine's own: whoever keeps it copies it.
        shape: of the whole.
        dim: along which it is cut; None if this is all of it.
        start: where along `dim` the part begins.
    """

    name: str
    value: torch.Tensor
    shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0


class Stored(Protocol):
    """A logical state that lies somewhere, to be read piece by piece."""

    def read(self, name: str, dim: int | None, start: int, length: int) -> torch.Tensor:
        """A tensor, or `length` places of it from `start` along `dim`."""


class LogicalState:
    """The state of a model under training, as the engine that inherits this holds it.

    An engine of its own kind says what of the model is here (`_named_parameters`, `_named_buffers`), and whose it is
    (`_own_parameters`, `_stage_of`).
    """

    module: nn.Module
    """What of the model this rank computes."""
    mesh: Mesh
    device: torch.device
    precision: str
    _skeleton: nn.Module
    """The whole model, without values."""
    _cut: dict[str, int]
    """Along which dimension tensor peers divide a parameter, by its name."""
    _deepspeed: Any

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What this rank holds, by the names that it has in the whole model; tied ones once."""
        return self.module.named_parameters()

    def _named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.module.named_buffers()

    def held(self) -> Iterator[Held]:
        """Every tensor of the state that this rank's stage is responsible for. Collective over data ranks."""
        keys = self._state_keys()
        for name, parameter in self._own_parameters():
            yield self._held(f"param/{name}", self._full(parameter), name)
            for key in keys:
                yield self._held(f"optimizer/{name}/{key}", self._full_state(parameter, key), name)
        for name, buffer in self._named_buffers():
            yield self._held(f"buffer/{name}", buffer.detach(), name)

    def _own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of all ranks' parameters, each is some stage's own."""
        return self._named_parameters()

    def _held(self, label: str, value: torch.Tensor, name: str) -> Held:
        dim = self._cut.get(name)
        if dim is None:
            return Held(label, value, tuple(value.shape))
        size, degree = value.shape[dim], self.mesh.layout.tensor
        shape = (*value.shape[:dim], size * degree, *value.shape[dim + 1 :])
        return Held(label, value, shape, dim, size * self.mesh.coordinate.tensor)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all parameters and buffers of the whole model, by their names in the state."""
        parameters = {f"param/{name}": tuple(p.shape) for name, p in self._skeleton.named_parameters()}
        return parameters | {f"buffer/{name}": tuple(b.shape) for name, b in self._skeleton.named_buffers()}

    def whole(self) -> nn.Module:
        """The model as it stands, whole, in fp32, on the processor of every rank. Collective."""
        local = {name: self._full(parameter) for name, parameter in self._own_parameters()}
        local |= {name: buffer.detach() for name, buffer in self._named_buffers()}
        memo: dict[int, Any] = {}
        for name, slot in [*self._skeleton.named_parameters(), *self._skeleton.named_buffers()]:
            value = self._gathered(name, slot, local.get(name))
            filled = nn.Parameter(value, requires_grad=slot.requires_grad) if isinstance(slot, nn.Parameter) else value
            memo[id(slot)] = filled
        return copy.deepcopy(self._skeleton, memo)

    def _gathered(self, name: str, slot: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
        layout = self.mesh.layout
        if layout.tensor * layout.pipeline == 1:
            assert value is not None
            return value.cpu().clone(memory_format=torch.contiguous_format)
        dim, stage = self._cut.get(name), self._stage_of(name)
        shape = list(slot.shape)
        if dim is not None:
            shape[dim] //= layout.tensor
        parts = []
        for tensor in range(1 if dim is None else layout.tensor):
            source = layout.rank(Coordinate(data=0, tensor=tensor, pipeline=stage))
            part = torch.empty(shape, dtype=slot.dtype, device=self.device)
            if self.mesh.rank == source:
                assert value is not None
                part.copy_(value)
            parts.append(self.mesh.broadcast(part, source).cpu())
        return parts[0] if dim is None else torch.cat(parts, dim=dim)

    def _stage_of(self, name: str) -> int:
        """The stage whose own a parameter or buffer is."""
        return 0

    def _full(self, parameter: nn.Parameter) -> torch.Tensor:
        """What the data ranks hold of a parameter together, in fp32."""
        if self._plain:
            return parameter.detach().float()
        return safe_get_full_fp32_param(parameter).detach().float()

    def _full_state(self, parameter: nn.Parameter, key: str) -> torch.Tensor:
        if self._plain:
            return self._torch_optimizer.state[parameter][key].detach().float()
        return safe_get_full_optimizer_state(parameter, key).detach().float()

    @property
    def _plain(self) -> bool:
        """fp32 without ZeRO: DeepSpeed keeps torch's own parameters and states, and its accessors give None."""
        return self.mesh.layout.zero_stage == 0 and self.precision == "fp32"

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._deepspeed.optimizer
        return optimizer if self._plain else optimizer.optimizer

    def _state_keys(self) -> list[str]:
        for state in self._torch_optimizer.state.values():
            return sorted(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim() > 0)
        return []

    def scalars(self) -> dict[str, float]:
        """What else the optimizer's state is made of: its number of steps, and the scale of fp16 losses."""
        steps = next((int(state.get("step", 0)) for state in self._torch_optimizer.state.values()), 0)
        return {"optimizer_steps": steps} | (
            {"loss_scale": float(self._deepspeed.optimizer.loss_scale)} if self.precision == "fp16" else {}
        )

    def _take(self, stored: Stored, scalars: dict[str, float]) -> None:
        """Takes over a logical state, each rank reading what it holds. The optimizer has taken a step. Collective."""
        keys = self._state_keys()
        with torch.no_grad():
            for name, parameter in self._named_parameters():
                self._set(parameter, self._read(stored, f"param/{name}", name, parameter))
                for key in keys:
                    value = self._read(stored, f"optimizer/{name}/{key}", name, parameter)
                    if self._plain:
                        self._torch_optimizer.state[parameter][key].copy_(value)
                    else:
                        safe_set_full_optimizer_state(parameter, value, key)
            for name, buffer in self._named_buffers():
                buffer.copy_(self._read(stored, f"buffer/{name}", name, buffer))
        steps = int(scalars["optimizer_steps"])
        for state in self._torch_optimizer.state.values():
            if "step" in state:
                state["step"] = (
                    torch.full_like(state["step"], steps) if isinstance(state["step"], torch.Tensor) else steps
                )
        if self.precision == "fp16":
            self._deepspeed.optimizer.loss_scaler.cur_scale = scalars["loss_scale"]

    def _read(self, stored: Stored, label: str, name: str, like: torch.Tensor) -> torch.Tensor:
        dim = self._cut.get(name)
        if dim is None:
            return stored.read(label, None, 0, 0).to(self.device)
        # Under ZeRO 3 a parameter's own shape is empty: `ds_shape` is what it would be.
        size = getattr(like, "ds_shape", like.shape)[dim]
        return stored.read(label, dim, size * self.mesh.coordinate.tensor, size).to(self.device)

    def _set(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        if self._plain:
            parameter.data.copy_(value)
            return
        safe_set_full_fp32_param(parameter, value)
        # The working copy is a tensor of its own: without this the next forward pass would use stale weights.
        sharded = self.mesh.layout.zero_stage == 3
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
            if not sharded or self.mesh.coordinate.data == 0:
                parameter.data.copy_(value)


def without_values(module: nn.Module) -> nn.Module:
    """A copy that knows all shapes and ties, and holds no memory."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def logical_names(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter, the first that it has: tied parameters have several."""
    first: dict[nn.Parameter, str] = {}
    return {
        name: first.setdefault(parameter, name) for name, parameter in module.named_parameters(remove_duplicate=False)
    }
