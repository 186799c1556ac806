"""When things happen: plan, pipeline, search, selection, report and the command line.

from orchestrator import JobSpec, run

report = run(JobSpec.load("examples/digits.yaml"))
print(report.selected)
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobs.spec import JobSpec

if TYPE_CHECKING:
    from orchestrator.driver import resume, run
    from orchestrator.scripting import search
    from orchestrator.search_result import SearchResult
    from orchestrator.watching import StopSearch, TrialEpoch

__all__ = ["JobSpec", "SearchResult", "StopSearch", "TrialEpoch", "resume", "run", "search"]

_WHERE = {
    "SearchResult": "search_result",
    "StopSearch": "watching",
    "TrialEpoch": "watching",
    "resume": "driver",
    "run": "driver",
}


def __getattr__(name: str) -> Any:
    # Ray is imported by whoever runs a job, not by whoever reads a spec.
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"orchestrator.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """This package, where `search` is the function even after the module `orchestrator.search` was imported.

    An import binds a module to its name in the package; there that name is taken.
    """

    @property
    def search(self) -> Any:
        from orchestrator import scripting

        return scripting.search

    @search.setter
    def search(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
