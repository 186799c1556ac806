"""One engine for every layout: DeepSpeed, with our optimizer, our rate and our losses."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn
from torch.nn import functional

from jobs.data.order import Ids
from jobs.layout import BatchShare, Coordinate
from jobs.models.invariant import GROUPED, SampleDropout
from jobs.spec.train import Adam, AdamW, Optimizer, Sgd
from jobs.train.config import deepspeed_config
from jobs.train.mesh import Mesh, device
from jobs.train.tensor import Peers, split_module

Tensors = dict[str, torch.Tensor]
Part = tuple[torch.Tensor, torch.Tensor, Ids]
"""Some of a global batch: samples, targets, sample ids."""


@dataclass(frozen=True)
class Batch:
    """A global batch, as one data rank's share of it.

    Attributes:
        part: gives the i-th micro-batch of the share.
        ids: gives its sample ids alone.
    """

    seed: int
    step: int
    part: Callable[[int], Part]
    ids: Callable[[int], Ids]


Criterion = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(outputs, targets, samples if they are at hand) → what the gradient is taken of."""


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


def _share_weights(optimizer: Any) -> None:
    """Lets ZeRO 3 in fp32 update the flat parameters themselves, instead of a copy of them.

    DeepSpeed (0.19) means to, but compares a device with a device's name.
    """
    pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
    for flat, updated in pairs:
        updated.data = flat


class Engine:
    """This rank's part of a model under training, on every worker of the group.

    Args:
        module: the same initial module on every rank; the engine takes it over, and divides it.
        share: how the global batch is divided.
        mesh: where this rank stands.
        nvme_path: a folder on a fast disk, for `offload: nvme`.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        share: BatchShare,
        mesh: Mesh,
        *,
        precision: str,
        gradient_clip: float | None,
        nvme_path: str | None = None,
    ) -> None:
        _forget_patches()
        self.share, self.mesh, self.precision = share, mesh, precision
        self.device = device()
        self.channels_last = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        self._skeleton = _without_values(module)
        self._logical = _logical_names(module)
        self._cut: dict[str, int] = {}
        if mesh.layout.tensor > 1:
            peers = Peers(mesh.tensor_group, mesh.coordinate.tensor, mesh.layout.tensor)
            self._cut = split_module(module, peers)
        self.module = self._local(module).to(self.device)
        if precision != "fp32":
            _normalize_in_fp32(self.module)
        self._mark_for_norm()
        config = deepspeed_config(
            share, mesh.layout, precision=precision, gradient_clip=gradient_clip, nvme_path=nvme_path
        )
        self._trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self._deepspeed = self._initialize(build_optimizer(optimizer, self._trainable), config)
        self._alone = self._plain and mesh.layout.data == 1 and mesh.layout.pipeline == 1
        if mesh.layout.zero_stage == 3 and precision == "fp32" and mesh.layout.offload == "none":
            _share_weights(self._deepspeed.optimizer)
        self._norms = [layer for layer in self.module.modules() if isinstance(layer, GROUPED)]
        self._dropouts = [layer for layer in self.module.modules() if isinstance(layer, SampleDropout)]
        if self.channels_last and self._plain:
            # After DeepSpeed has broadcast the weights, which it does as flat bytes. ZeRO keeps its own flat copies.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _local(self, module: nn.Module) -> nn.Module:
        """What of the model this rank computes."""
        return module

    def _initialize(self, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
        engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=config, mpu=self.mesh, dist_init_required=False
        )
        return engine

    def _mark_for_norm(self) -> None:
        """Tells DeepSpeed which parameters count here in the norm of the whole gradient: each once in a layout.

        A parameter counts on the ranks where it is flagged, and on the first rank whatever its flag.
        """
        for name, parameter in self._named_parameters():
            counts = name in self._cut or self.mesh.coordinate.tensor == 0
            parameter.model_parallel = counts  # type: ignore[attr-defined]

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Puts a batch where, and in the type and memory order in which, the model wants it."""
        x = x.to(self.device)
        if not x.is_floating_point():
            return x
        x = x.to(_DTYPES[self.precision])
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and self.channels_last else x

    # -- training

    def train_batch(self, batch: Batch, criterion: Criterion) -> None:
        """Takes one step towards a lower mean of `criterion` over data ranks and micro-batches. Collective."""
        for index in range(self.share.accumulation):
            x, y, ids = batch.part(index)
            self._begin_part(batch, ids)
            x = self.inputs(x)
            if self._alone:
                (criterion(self.module(x), y.to(self.device), x) / self.share.accumulation).backward()
            else:
                self._deepspeed.backward(criterion(self._deepspeed(x), y.to(self.device), x))
                self._deepspeed.step()
        if self._alone:
            self._step_alone()
        self._end_batch()

    def _step_alone(self) -> None:
        """What DeepSpeed does in a step where there is nobody to share with and nothing to scale.

        Its own way there looks at every module and parameter several times, and sums the gradients over a group of
        one: for a small model that is a fifth of a step.
        """
        for parameter in self._trainable:
            if parameter.grad is None:  # it took no part in the loss: zero, as where gradients are summed over ranks
                parameter.grad = torch.zeros_like(parameter)
        if self._deepspeed.gradient_clipping() > 0:
            self._deepspeed.clip_fp32_gradients()
        self._deepspeed.optimizer.step()
        for parameter in self._trainable:
            parameter.grad = None

    def set_rate(self, rate: float) -> None:
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def _begin_part(self, batch: Batch, ids: Ids) -> None:
        """Says which samples the next forward pass takes: what dropout's masks are a function of."""
        for layer in self._dropouts:
            layer.begin(batch.seed, batch.step, ids, self.device)

    def _end_batch(self) -> None:
        """After the whole global batch: its statistics over all workers go into batch normalization. Collective."""
        if not self._norms:
            return
        found = [layer.take_pending() for layer in self._norms]
        flat = self.mesh.mean_over_data(torch.cat([statistics.flatten() for statistics in found]))
        for layer, values in zip(self._norms, flat.split([s.numel() for s in found]), strict=True):
            layer.commit(values.view(2, -1))

    # -- evaluation

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train()

    def outputs(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor | None]:
        """The model's outputs, in fp32, batch by batch; None where another stage has them. Collective.

        All ranks give equally many batches, all of one shape, within `evaluating`.
        """
        forward = self.module if self._alone else self._deepspeed
        for x in batches:
            yield forward(self.inputs(x)).float()

    def close(self) -> None:
        """Frees what DeepSpeed holds; the process group stays for the next training."""
        self._deepspeed.destroy()
        _forget_patches()

    # -- the logical state: unsharded tensors by parameter name, the same under every layout

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

    def restore(self, stored: Stored, scalars: dict[str, float], batch: Batch) -> None:
        """Takes over a logical state, each rank reading what it holds. Collective.

        Optimizer states exist only after a step, so one of rate 0 is taken first; everything that it touched is then
        overwritten.
        """
        rates = [group["lr"] for group in self._deepspeed.optimizer.param_groups]
        self.set_rate(0.0)
        self.train_batch(batch, lambda outputs, y, x: outputs.float().sum() * 0.0)
        for group, rate in zip(self._deepspeed.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
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


_TORCH_LINEAR = functional.linear


def _forget_patches() -> None:
    """Undoes what ZeRO 3 leaves behind in the process.

    Its linear layer reports gradients in another order: two ranks of which one alone has seen ZeRO 3 would mix them up
    under stage 2, in silence. And its stack of modules would keep every engine there has been.
    """
    functional.linear = _TORCH_LINEAR
    FWD_MODULE_STACK.clear()


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _without_values(module: nn.Module) -> nn.Module:
    """A copy that knows all shapes and ties, and holds no memory."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _logical_names(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter, the first that it has: tied parameters have several."""
    first: dict[nn.Parameter, str] = {}
    return {
        name: first.setdefault(parameter, name) for name, parameter in module.named_parameters(remove_duplicate=False)
    }
