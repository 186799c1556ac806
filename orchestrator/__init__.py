"""When things happen: plan, pipeline, search, selection, report and the command line.

from orchestrator import JobSpec, run

report = run(JobSpec.load("examples/digits.yaml"))
print(report.selected)
"""

from typing import TYPE_CHECKING, Any

from jobs.spec import JobSpec

if TYPE_CHECKING:
    from orchestrator.driver import resume, run
    from orchestrator.searching.result import SearchResult
    from orchestrator.searching.scripting import search
    from orchestrator.searching.watching import StopSearch, TrialEpoch

__all__ = ["JobSpec", "SearchResult", "StopSearch", "TrialEpoch", "resume", "run", "search"]

_WHERE = {
    "SearchResult": "searching.result",
    "StopSearch": "searching.watching",
    "TrialEpoch": "searching.watching",
    "resume": "driver",
    "run": "driver",
    "search": "searching.scripting",
}


def __getattr__(name: str) -> Any:
    # Ray is imported by whoever runs a job, not by whoever reads a spec.
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"orchestrator.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
