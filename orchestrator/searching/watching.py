"""Who looks on while a search runs, and may end it early: the callbacks of `orchestrator.search`."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.records import Trial
from jobs.spec import JobSpec
from orchestrator.searching.result import SearchResult, result_of

logger = logging.getLogger(__name__)


class StopSearch(Exception):
    """Raised or returned by a callback: the search has found enough. Its text is the reason that is noted."""


@dataclass(frozen=True)
class TrialEpoch:
    """An epoch of a trial that is under way.

    Attributes:
        epoch: how many epochs are done.
        loss, metric: on validation; NaN where it was not measured.
    """

    trial: int
    phase: str
    params: dict[str, Any]
    epoch: float
    step: int
    loss: float
    metric: float


OnTrial = Callable[[Trial], object]
OnEpoch = Callable[[TrialEpoch], object]
Stop = Callable[[SearchResult], object]

_TRIAL_FIELDS = frozenset(Trial.model_fields)


class Watcher:
    """Listens to a run's events, calls the user's functions, and knows whether the search is to end.

    An error in one of them must not go through Tune, which would take it for its own: the search ends gracefully and
    the error is raised after that, by `raise_error`.
    """

    def __init__(
        self, *, on_trial: OnTrial | None = None, on_epoch: OnEpoch | None = None, stop: Stop | None = None
    ) -> None:
        self.on_trial, self.on_epoch, self.stop = on_trial, on_epoch, stop
        self.ended = ""
        """Why the search is to end; empty while it goes on."""
        self._error: Exception | None = None
        self._base: JobSpec | None = None
        self._trials: list[Trial] = []
        self._params: dict[int, dict[str, Any]] = {}

    def begin(self, base: JobSpec, known: list[Trial]) -> None:
        """A phase begins; `known`: its trials that an earlier attempt finished."""
        self._base, self._trials, self._params = base, list(known), {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "trial_started":
            self._params[event["trial"]] = event["params"]
        elif event["event"] == "trial_epoch":
            self._tell(self.on_epoch, self._epoch(event))
        elif event["event"] == "trial":
            trial = Trial.from_json({key: value for key, value in event.items() if key in _TRIAL_FIELDS})
            self._trials.append(trial)
            self._tell(self.on_trial, trial)
            if self.stop is not None and not self.ended:
                assert self._base is not None
                so_far = result_of(self._base, self._trials)
                if self._tell(self.stop, so_far):
                    self.ended = self.ended or "the condition of its caller holds"

    def raise_error(self) -> None:
        """Raises what a callback raised, if one did."""
        if self._error is not None:
            raise self._error

    def _epoch(self, event: dict[str, Any]) -> TrialEpoch:
        loss, metric = (math.nan if event[name] is None else event[name] for name in ("loss", "metric"))
        return TrialEpoch(
            trial=event["trial"],
            phase=event["phase"],
            params=self._params.get(event["trial"], {}),
            epoch=event["epoch"],
            step=event["step"],
            loss=loss,
            metric=metric,
        )

    def _tell(self, callback: Callable[[Any], object] | None, argument: Any) -> object:
        if callback is None or self._error is not None:
            return None
        try:
            answer = callback(argument)
        except StopSearch as wish:
            answer = wish
        except Exception as error:  # whatever the user's function raises: it is raised when the trials have ended
            logger.debug("a callback raised", exc_info=True)
            self._error = error
            self.ended = f"a callback raised {type(error).__name__}"
            return None
        if isinstance(answer, StopSearch) or answer is StopSearch:
            reason = str(answer) if isinstance(answer, StopSearch) else ""
            self.ended = self.ended or reason or "a callback asked for it"
            return None
        return answer
