"""What all tests share: one thread a process, and tests marked `gpu` run only where there is an accelerator."""

import gc
import os
import sys
from collections.abc import Generator

import pytest

# Models this small only wait for one another's threads, and tests run on several processes. Before torch is imported:
# its libraries read this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every process that a test starts would otherwise compile every module of ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Garbage is looked for among what the tests make, and not in what they were made of.

    Nothing that is imported becomes garbage, and going through all of it again and again is a third of the collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_accelerator():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
