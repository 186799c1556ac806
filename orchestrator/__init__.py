"""When things happen: plan, pipeline, search, selection, report and the command line.

from orchestrator import JobSpec, run

report = run(JobSpec.load("examples/digits.yaml"))
print(report.selected)
"""

from typing import TYPE_CHECKING, Any

from jobs.spec import JobSpec

if TYPE_CHECKING:
    from orchestrator.driver import resume, run

__all__ = ["JobSpec", "resume", "run"]


def __getattr__(name: str) -> Any:
    # Ray is imported by whoever runs a job, not by whoever reads a spec.
    if name in ("resume", "run"):
        from orchestrator import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
