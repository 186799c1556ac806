"""What is to be searched, and who is told of it: what the pipeline asks of a search."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.layout import ParallelLayout
from jobs.records import Segment, Trial
from jobs.spec import JobSpec
from jobs.spec.search import Phase, Search


@dataclass(frozen=True)
class SearchTask:
    """One phase of a search.

    Attributes:
        base: what the trials differ from.
        evaluations: the steps after which a training looks at validation, and can be stopped.
        trained: in the phase `compress`, the lineage of the winner's model, where it has one.
        folder: where the study and the finished trials are kept; a search that was broken off goes on from there.
        slots: how many trials fit the free resources at a time.
        watched: somebody decides upon each epoch whether the search goes on.
    """

    base: JobSpec
    phase: Phase
    storage: Path
    dataset: Path
    code: str
    layout: ParallelLayout
    evaluations: tuple[int, ...]
    trained: tuple[Segment, ...]
    folder: Path
    slots: int
    on_trial: Callable[[Trial], None]
    on_event: Callable[[dict[str, Any]], None]
    should_stop: Callable[[], bool] = field(default=lambda: False)
    watched: bool = False

    @property
    def search(self) -> Search:
        assert self.base.search is not None
        return self.base.search
