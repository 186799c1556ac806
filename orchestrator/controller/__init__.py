"""The one loop that changes the state of jobs."""

from orchestrator.controller.controller import Controller

__all__ = ["Controller"]
