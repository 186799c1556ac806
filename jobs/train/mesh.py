"""Process groups and devices. The only file that knows the names of backends and devices."""

import gc
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch

from jobs.context import Context
from jobs.layout import Coordinate, ParallelLayout

GROUP_TIMEOUT_S = 300
_HEADER = 64
"""Numbers that say what is sent from one stage to the next: how many tensors, and of each its type and shape."""
_DTYPES = (torch.float32, torch.int64, torch.bool, torch.int32, torch.bfloat16, torch.float16, torch.float64)


def warm_up(context: Context, request: Any = None) -> None:
    """Does once a process what every training needs: heavy imports, threads, the process group.

    Safe to call again: what is there is kept, unless the process has been given another seat.
    """
    torch.set_num_threads(context.num_threads)
    _quiet()
    from deepspeed import comm, init_distributed, ops

    # A kernel for inference that nothing here calls: DeepSpeed would compile it for most of a minute when a machine
    # first forms a group, and wait without end for the build of a process that was killed.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False

    if comm.is_initialized():
        if os.environ.get(_FORMED) in (None, _seat()):
            return
        disband()
    os.environ.setdefault("RANK", str(context.rank))
    os.environ.setdefault("LOCAL_RANK", str(context.rank))
    os.environ.setdefault("WORLD_SIZE", str(context.size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    if device().type != "cpu":
        torch.get_device_module(device().type).set_device(device())
    init_distributed(
        dist_backend=_backend(),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=GROUP_TIMEOUT_S),
    )
    os.environ[_FORMED] = _seat()


_FORMED = "THRESHER_PROCESS_GROUP"
"""Where the process notes for which seat it has formed its group: as lasting as the group itself."""


def _seat() -> str:
    return " ".join(os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def from_first(context: Context, document: Any) -> Any:
    """What rank 0 has, on every rank: something that JSON can hold. Collective."""
    if context.size == 1:
        return document
    warm_up(context)
    from deepspeed import comm

    content = json.dumps(document).encode()
    length = torch.tensor([len(content)], dtype=torch.int64, device=device())
    comm.broadcast(length, src=0)
    if context.rank == 0:
        values = torch.tensor(list(content), dtype=torch.uint8, device=device())
    else:
        values = torch.empty(int(length), dtype=torch.uint8, device=device())
    comm.broadcast(values, src=0)
    return json.loads(bytes(values.cpu().tolist()))


def disband() -> None:
    """Ends the process group, so that these processes, or some of them, can form another one.

    Whoever still waits in it for this process is told so by a broken connection.
    """
    from deepspeed import comm
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    if not comm.is_initialized():
        return
    _GROUPS.clear()
    comm.destroy_process_group()
    comm.comm.cdb = None
    # A failed training leaves engines in reference cycles, and they hold groups: connections close with the last of it.
    gc.collect()
    # ZeRO 3 numbers modules and parameters for the life of a process, and compares the numbers among the ranks: those
    # of different ages would not agree.
    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__ = ([0],)


_GROUPS: dict[tuple[int, ...], Any] = {}
"""Of this process, by their ranks. All ranks have made them in one order, since all have run the same trainings."""


class Mesh:
    """A rank's place in a layout, and the groups it belongs to. DeepSpeed takes it for its model-parallel unit (`mpu`).

    Attributes:
        data_group: the ranks that hold the same part of the model, and take different samples.
        tensor_group: the ranks that divide each layer of the same stage for the same samples.
    """

    def __init__(self, layout: ParallelLayout, rank: int) -> None:
        from deepspeed import comm

        self.layout, self.rank, self.device = layout, rank, device()
        self.coordinate = layout.coordinate(rank)
        self._comm, self._create_group = comm, comm.new_group
        # Every rank makes every group, in one order, whether it belongs to it or not.
        for ranks in _lines(layout, "data"):
            group = self.new_group(ranks)
            if rank in ranks:
                self.data_group, self._data_ranks = group, ranks
        for ranks in _lines(layout, "tensor"):
            group = self.new_group(ranks)
            if rank in ranks:
                self.tensor_group = group

    def new_group(self, ranks: list[int]) -> Any:
        """The group of these ranks, which lasts as long as the process group: trainings share it. Collective."""
        if self.layout.size == 1:
            return self._comm.get_world_group()  # which is there, and costs no threads
        key = tuple(ranks)
        if key not in _GROUPS:
            _GROUPS[key] = self._create_group(ranks)
        return _GROUPS[key]

    @contextmanager
    def sharing_groups(self) -> Iterator[None]:
        """Has DeepSpeed share the groups too: it makes its own for each training, with threads that never end."""
        self._comm.new_group = self.new_group
        try:
            yield
        finally:
            self._comm.new_group = self._create_group

    @property
    def is_last_stage(self) -> bool:
        return self.coordinate.pipeline == self.layout.pipeline - 1

    @property
    def answers(self) -> bool:
        """Whether this rank speaks for its samples: it has the outputs, and its tensor peers keep quiet."""
        return self.is_last_stage and self.coordinate.tensor == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place. Collective."""
        if self.layout.size > 1:
            self._comm.all_reduce(values)
        return values

    def mean_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks that take different samples, in place. Collective."""
        if self.layout.data > 1:
            self._comm.all_reduce(values, group=self.data_group)
            values /= self.layout.data
        return values

    def broadcast(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Rank `source`'s values, in place. Collective."""
        if self.layout.size > 1:
            self._comm.broadcast(values, src=source)
        return values

    def send(self, state: Any, stage: int) -> None:
        """Hands a tensor, or a tuple of them, to the same place in another stage, which must `receive` it."""
        tensors = state if isinstance(state, tuple) else (state,)
        header = [len(tensors), isinstance(state, tuple)]
        for tensor in tensors:
            header += [_DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
        header += [0] * (_HEADER - len(header))
        peer = self._peer(stage)
        self._comm.send(torch.tensor(header, dtype=torch.int64, device=self.device), peer)
        for tensor in tensors:
            self._comm.send(tensor.contiguous(), peer)

    def receive(self, stage: int) -> Any:
        """What another stage has sent here, in the order in which it did."""
        peer = self._peer(stage)
        received = torch.empty(_HEADER, dtype=torch.int64, device=self.device)
        self._comm.recv(received, peer)
        header = iter(received.tolist())
        count, is_tuple = next(header), next(header)
        tensors = []
        for _ in range(count):
            dtype, dims = _DTYPES[next(header)], next(header)
            tensors.append(torch.empty([next(header) for _ in range(dims)], dtype=dtype, device=self.device))
        for tensor in tensors:
            self._comm.recv(tensor, peer)
        return tuple(tensors) if is_tuple else tensors[0]

    def _peer(self, stage: int) -> int:
        return self.layout.rank(replace(self.coordinate, pipeline=stage))

    def barrier(self) -> None:
        if self.layout.size > 1:
            self._comm.barrier()

    def close(self) -> None:
        """Makes DeepSpeed forget the groups."""
        from deepspeed.utils import groups

        groups.mpu = None

    # -- what DeepSpeed asks of an mpu

    def get_data_parallel_group(self) -> Any:
        return self.data_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return self._data_ranks

    def get_data_parallel_world_size(self) -> int:
        return self.layout.data

    def get_data_parallel_rank(self) -> int:
        return self.coordinate.data

    def get_model_parallel_group(self) -> Any:
        return self.tensor_group

    def get_model_parallel_world_size(self) -> int:
        return self.layout.tensor

    def get_model_parallel_rank(self) -> int:
        return self.coordinate.tensor

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank


def _lines(layout: ParallelLayout, axis: str) -> Iterator[list[int]]:
    """The ranks that differ in one coordinate alone, line by line."""
    degree = getattr(layout, axis)
    for rank in range(layout.size):
        start = layout.coordinate(rank)
        if getattr(start, axis) == 0:
            places = (Coordinate(**{**vars(start), axis: index}) for index in range(degree))
            yield [layout.rank(place) for place in places]


def device() -> torch.device:
    """The device of this worker: its accelerator if it has one, else the processor."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    # Ray shows a worker only the accelerators that are its own.
    local = int(os.environ.get("LOCAL_RANK", "0")) % max(1, accelerator.device_count())
    return torch.device(accelerator.device_name(local))


def seed_generators(seed: int) -> None:
    """Seeds what torch draws from on this worker's device, and on its processor.

    `torch.manual_seed` seeds the devices of every other kind too: where there are none, each call puts a note with its
    whole stack on lists that are never emptied. That is a millisecond a step, and memory without end.
    """
    torch.default_generator.manual_seed(seed)
    kind = device().type
    if kind != "cpu":
        torch.get_device_module(kind).manual_seed_all(seed)


def _backend() -> str:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    # oneCCL is DeepSpeed's first choice on processors, and needs Intel's bindings; gloo ships with torch.
    return "gloo" if accelerator.device_name() == "cpu" else accelerator.communication_backend_name()


def _quiet() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls torch's collectives by the names that torch 2.13 begins to replace.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
