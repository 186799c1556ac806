"""Process groups and devices. The only file that knows the names of backends and devices."""

import logging
import os
import socket
import warnings
from datetime import timedelta
from typing import Any

import torch

from jobs.context import Context

GROUP_TIMEOUT_S = 300


def warm_up(context: Context, request: Any = None) -> None:
    """Does once a process what every training needs: heavy imports, threads, the process group.

    Safe to call again: what is there is kept.
    """
    torch.set_num_threads(context.num_threads)
    _quiet()
    from deepspeed import comm, init_distributed

    if comm.is_initialized():
        return
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


def device() -> torch.device:
    """The device of this worker: its accelerator if it has one, else the processor."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    # Ray shows a worker only the accelerators that are its own.
    local = int(os.environ.get("LOCAL_RANK", "0")) % max(1, accelerator.device_count())
    return torch.device(accelerator.device_name(local))


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
