"""What a piece of work may know of the process that runs it.

Work is a function `(context, request) -> result`. The same function runs in a Ray worker, under torchrun and
in a test: only the context differs.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Context(Protocol):
    """The seat of one worker in its group."""

    @property
    def rank(self) -> int:
        """0 … size-1. Rank 0 writes the files and the reports."""

    @property
    def size(self) -> int:
        """Number of workers in the group."""

    @property
    def num_threads(self) -> int:
        """Intra-operation threads that this worker may use."""

    def report(self, measurement: dict[str, Any]) -> None:
        """Hands a JSON-able measurement to whoever started the work; never blocks."""

    def stop_requested(self) -> bool:
        """True once whoever started the work wants it to end early, at the next safe point."""

    def beat(self) -> None:
        """A sign that the work goes on. One that has given a sign, and then gives none for long, counts as stuck."""


@dataclass
class LocalContext:
    """One process on its own: tests, scripts, and the inspection of artifacts."""

    rank: int = 0
    size: int = 1
    num_threads: int = 1
    on_report: Callable[[dict[str, Any]], None] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)

    def report(self, measurement: dict[str, Any]) -> None:
        self.reports.append(measurement)
        if self.on_report:
            self.on_report(measurement)

    def stop_requested(self) -> bool:
        return False

    def beat(self) -> None:
        pass


@dataclass(frozen=True)
class WorkRef:
    """Work by its name, `package.module:function`: imported where it runs, not by whoever sends it there."""

    name: str

    def __call__(self, context: Context, request: Any) -> Any:
        module, _, function = self.name.partition(":")
        return getattr(importlib.import_module(module), function)(context, request)
