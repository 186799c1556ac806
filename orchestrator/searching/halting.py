"""Which trials of a search end early: Tune's own rules, told the same whatever happens to the trials' processes.

Tune's asynchronous Hyperband draws a trial's bracket from NumPy's global state, and draws it again when the trial is
retried. Here a bracket is a function of the trial's number, each bracket is a successive halving of its own, and
epochs that a trial shows a second time are passed over. A trial that has trained to its end is never stopped.

Sources: ASHA, Li et al. 2020 (MLSys); Hyperband's brackets and how many trials each gets, Li et al. 2018 (JMLR);
median stopping, Golovin et al. 2017 (Vizier).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from jobs.records import Trial
from jobs.spec.search import Search

REDUCTION = 3
"""Of the trials that reach a rung, one in so many goes on (eta in the papers)."""
MEDIAN_OF_AT_LEAST = 3
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def num_brackets(evaluations: int, grace: int) -> int:
    """Hyperband's floor(log_eta(R / r)) + 1, in integers.

    >>> num_brackets(27, 1), num_brackets(26, 1), num_brackets(9, 3), num_brackets(1, 1)
    (4, 3, 2, 1)
    """
    count = 1
    while grace * REDUCTION**count <= evaluations:
        count += 1
    return count


def bracket_of(number: int, brackets: int, seed: int = 0) -> int:
    """The bracket of a trial: 0 halves from the grace on, each further one from a rung later.

    Shares are those of Hyperband, (s_max + 1) / (s + 1) · eta^s for s halvings, so that all brackets cost about the
    same; the golden ratio's multiples spread them evenly over any run of trials.
    """
    weights = [brackets / (halvings + 1) * REDUCTION**halvings for halvings in reversed(range(brackets))]
    place = (number * _GOLDEN + (seed * _GOLDEN) % 1.0) % 1.0 * sum(weights)
    for bracket, weight in enumerate(weights):
        place -= weight
        if place < 0.0:
            return bracket
    return brackets - 1


@dataclass(frozen=True)
class _Past:
    """Stands for a trial that an earlier process finished; the rules look at nothing but who it is."""

    trial_id: str


class Halting(FIFOScheduler):
    """Asks the rule of a trial's bracket; keeps what Tune should not see twice from it.

    Args:
        rules: one a bracket.
        past: finished trials, which a resumed search goes on comparing with.
    """

    def __init__(self, rules: Sequence[TrialScheduler], seed: int, past: Iterable[Trial]) -> None:
        super().__init__()
        self.rules, self.seed = rules, seed
        self.brackets: dict[str, int] = {}
        self.shown: dict[str, int] = {}
        for trial in past:
            before = _Past(f"finished-{trial.number}")
            rule = rules[bracket_of(trial.number, len(rules), seed)]
            rule.on_trial_add(None, before)
            for epoch, metric in enumerate(trial.curve, start=1):
                rule.on_trial_result(None, before, {"epochs": epoch, "metric": metric})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if trial.trial_id in self.brackets:
            return  # it is retried
        bracket = bracket_of(trial.config["number"], len(self.rules), self.seed)
        self.brackets[trial.trial_id], self.shown[trial.trial_id] = bracket, 0
        self.rules[bracket].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        epochs: int | None = result.get("epochs")
        if epochs is None or epochs <= self.shown[trial.trial_id]:
            return str(TrialScheduler.CONTINUE)
        self.shown[trial.trial_id] = epochs
        rule = self.rules[self.brackets[trial.trial_id]]
        decision: str = rule.on_trial_result(tune_controller, trial, result)
        return str(TrialScheduler.CONTINUE) if result["trained"] else decision


def halting(search: Search, *, direction: str, evaluations: int, past: Iterable[Trial] = ()) -> TrialScheduler:
    """The rule that the spec names, for trainings that look at validation so many times."""
    options: dict[str, Any] = {"time_attr": "epochs", "metric": "metric", "mode": direction}
    grace = search.grace_epochs
    if search.scheduler == "none" or evaluations <= grace:
        return FIFOScheduler()
    if search.scheduler == "median":
        rule = MedianStoppingRule(
            **options,
            grace_period=grace,
            min_samples_required=MEDIAN_OF_AT_LEAST,
            # Else it pauses trials as long as there are few to compare with: a pause needs a checkpoint of the actor.
            min_time_slice=math.inf,
        )
        return Halting([rule], search.seed, past)
    brackets = num_brackets(evaluations, grace) if search.scheduler == "hyperband" else 1
    rules = [
        AsyncHyperBandScheduler(
            **options,
            max_t=evaluations + 1,  # it stops what reaches this, and a trial ends by itself
            grace_period=grace * REDUCTION**bracket,
            reduction_factor=REDUCTION,
        )
        for bracket in range(brackets)
    ]
    return Halting(rules, search.seed, past)
