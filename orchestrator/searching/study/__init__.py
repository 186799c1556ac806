"""The searcher: which values a trial gets, and the book of what became of each. Knows nothing of Ray."""

from orchestrator.searching.study.study import Asked, Study, directions

__all__ = ["Asked", "Study", "directions"]
