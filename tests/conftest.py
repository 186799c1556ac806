"""What all tests share: tests marked `gpu` run only where there is an accelerator."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_accelerator():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()
