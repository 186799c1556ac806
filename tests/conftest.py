"""What all tests share: one thread a process, and tests marked `gpu` run only where there is an accelerator."""

import os

import pytest

# Models this small only wait for one another's threads, and tests run on several processes. Before torch is imported:
# its libraries read this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_accelerator():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
