"""One engine for every layout: DeepSpeed, with our optimizer, our rate and our losses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from torch import nn
from torch.nn import functional

from jobs.data.order import Ids
from jobs.layout import BatchShare
from jobs.models.invariant import GROUPED, SampleDropout
from jobs.spec.train import Adam, AdamW, Optimizer, Sgd
from jobs.train.config import deepspeed_config
from jobs.train.mesh import Mesh, device
from jobs.train.state import LogicalState, Stored, logical_names, without_values
from jobs.train.tensor import Peers, split_module

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


class Engine(LogicalState):
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
        self._skeleton = without_values(module)
        self._logical = logical_names(module)
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
                loss = criterion(self.module(x), y.to(self.device), x)
                # Dividing by one would be two more operations, here and on the way back.
                (loss / self.share.accumulation if self.share.accumulation > 1 else loss).backward()
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
        self._take(stored, scalars)

    def close(self) -> None:
        """Frees what DeepSpeed holds; the process group stays for the next training."""
        self._deepspeed.destroy()
        _forget_patches()


_TORCH_LINEAR = functional.linear


def _forget_patches() -> None:
    """Undoes what ZeRO 3 leaves behind in the process.

    Its linear layer reports gradients in another order: two ranks of which one alone has seen ZeRO 3 would mix them up
    under stage 2, in silence. And its stack of modules would keep every engine there has been.
    """
    functional.linear = _TORCH_LINEAR
    FWD_MODULE_STACK.clear()


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
