"""The job spec: one schema for YAML, JSON and Python. Imports neither torch nor ray."""

from jobs.spec.job import JobSpec

__all__ = ["JobSpec"]
