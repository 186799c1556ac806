"""Pipeline parallelism: each rank computes a stage, some consecutive blocks, for one micro-batch after another.

The schedule (one forward, one backward: Narayanan et al. 2019, PipeDream) and the traffic between stages are
DeepSpeed's.
"""

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from jobs.layout import Coordinate, ParallelLayout, stage_bounds
from jobs.train.engine import Batch, Criterion, Engine

_EVALUATED_AT_ONCE = 2
"""Batches a stage that are on their way together in evaluation: their outputs are all held by the last one."""


class PipelinedEngine(Engine):
    """An engine whose module is an nn.Sequential of blocks, of which this rank has a stage.

    Args:
        block_costs: what each block costs to compute; the stages are balanced by it.
    """

    def __init__(self, *args: Any, block_costs: tuple[int, ...], **options: Any) -> None:
        self._block_costs = block_costs
        self._criterion: Criterion = _unset
        self._announce: Callable[[], None] = lambda: None
        super().__init__(*args, **options)

    def _local(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.Sequential)
        names = [name for name, _ in module.named_children()]
        bounds = stage_bounds(self._block_costs, self.mesh.layout.pipeline)
        self._stages = {names[index]: stage for stage, blocks in enumerate(bounds) for index in blocks}
        here = self.mesh.coordinate.pipeline
        blocks = OrderedDict(module.named_children())
        for name in names:
            delattr(module, name)  # so that nobody keeps the other stages in memory
        return nn.Sequential(OrderedDict((n, block) for n, block in blocks.items() if self._stages[n] == here))

    def _initialize(self, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
        layout, here = self.mesh.layout, self.mesh.coordinate.pipeline
        topology = PipeModelDataParallelTopology(num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data)
        # One layer a stage; of those of other stages, nothing but their number matters.
        layers = [self.module if stage == here else nn.Identity() for stage in range(layout.pipeline)]
        with self.mesh.sharing_groups():
            with redirect_stdout(io.StringIO()):  # DeepSpeed prints its partition
                pipe = PipelineModule(
                    layers, topology=topology, loss_fn=self._loss, partition_method="uniform", seed_layers=False
                )
            self._tie(pipe)
            pipe.register_forward_pre_hook(self._begin_forward)
            pipe.register_forward_hook(lambda module, args, outputs: _travelling(outputs))
            engine, *_ = deepspeed.initialize(model=pipe, optimizer=optimizer, config=config, dist_init_required=False)
        return engine

    def _begin_forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._announce()
        return tuple(_travelling(state) for state in args)

    def _tie(self, pipe: PipelineModule) -> None:
        """Makes DeepSpeed sum the gradients of a parameter that two stages have."""
        local = dict(self.module.named_parameters())
        for number, (alias, name) in enumerate(self._ties()):
            stages = (self._stage_of(name), self._stage_of(alias))
            for ranks in _across(self.mesh.layout, stages):
                group = self.mesh.new_group(ranks)
                if self.mesh.rank not in ranks:
                    continue
                parameter = local[name] if name in local else local[alias]
                holder = nn.Module()
                holder.weight = parameter
                parameter.ds_pipe_replicated = self.mesh.rank != ranks[0]  # type: ignore[attr-defined]
                pipe.tied_modules[str(number)] = holder
                pipe.tied_comms[str(number)] = {
                    "ranks": ranks,
                    "group": group,
                    "weight_attr": ["weight"],
                    "module": holder,
                }

    def _ties(self) -> list[tuple[str, str]]:
        """(name, first name) of each parameter that lies in a later stage again."""
        return [(a, n) for a, n in self._logical.items() if self._stage_of(a) != self._stage_of(n)]

    def _mark_for_norm(self) -> None:
        super()._mark_for_norm()
        own = {name for name, _ in self._own_parameters()}
        for name, parameter in self._named_parameters():
            if name not in own:
                parameter.model_parallel = False  # type: ignore[attr-defined]

    def _loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._criterion(outputs, targets, None)

    def train_batch(self, batch: Batch, criterion: Criterion) -> None:
        # Micro-batches pass a stage in their order, so counting them tells which samples come.
        upcoming = iter(range(self.share.accumulation))

        def announce() -> None:
            if self._dropouts:
                self._begin_part(batch, batch.ids(next(upcoming)))

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for index in range(self.share.accumulation):
                x, y, _ = batch.part(index)
                yield self.inputs(x), y

        self._criterion, self._announce = criterion, announce
        self._deepspeed.train_batch(batches())
        self._announce = lambda: None
        self._end_batch()

    def outputs(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor | None]:
        engine = self._deepspeed
        engine.reset_activation_shape()
        while together := list(islice(batches, _EVALUATED_AT_ONCE * self.mesh.layout.pipeline)):
            engine.total_loss = None
            found = engine.eval_batch(
                iter([(self.inputs(x), x) for x in together]),
                compute_loss=False,
                reduce_output=None,
                num_micro_batches=len(together),
            )
            yield from [None] * len(together) if found is None else [outputs.float() for outputs in found]
        engine.fwd_outputs, engine.total_loss = [], None
        engine.reset_activation_shape()

    def close(self) -> None:
        # What is left of the last batch holds its graph, and that the whole engine, out of the collector's sight.
        engine = self._deepspeed
        engine.pipe_buffers, engine.fwd_outputs = {}, []
        engine.loss = engine.total_loss = engine.outputs = None
        super().close()

    def _stage_of(self, name: str) -> int:
        return self._stages[name.partition(".")[0]]

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.module.named_parameters():
            yield self._logical[name], parameter

    def _own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        here = self.mesh.coordinate.pipeline
        return ((name, parameter) for name, parameter in self._named_parameters() if self._stage_of(name) == here)


class _Contiguous(torch.autograd.Function):
    """The identity, contiguous in both directions: what is sent to another stage must be."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous()


def _travelling(state: Any) -> Any:
    """A tensor or a tuple of them, fit to be sent, and their gradients too."""
    if isinstance(state, tuple):
        return tuple(_travelling(tensor) for tensor in state)
    return _Contiguous.apply(state) if state.is_floating_point() else state.contiguous()


def _across(layout: ParallelLayout, stages: tuple[int, ...]) -> Iterator[list[int]]:
    """The ranks of some stages that have the same place in all else."""
    for data in range(layout.data):
        for tensor in range(layout.tensor):
            yield [layout.rank(Coordinate(data=data, tensor=tensor, pipeline=stage)) for stage in sorted(stages)]


def _unset(outputs: torch.Tensor, targets: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    raise RuntimeError("no batch is under way")
