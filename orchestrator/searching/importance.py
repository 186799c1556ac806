"""Which searched keys mattered: functional ANOVA over a study's completed trials (Hutter, Hoos & Leyton-Brown 2014)."""

import math
from collections.abc import Sequence
from typing import Any

from jobs.records import Trial
from jobs.spec.space import Space

FEWEST_TRIALS = 4
MOST_TRIALS = 256
"""Of more an even choice is looked at: the forest's time grows faster than their number."""
SEED = 0


def importance(trials: Sequence[Trial], space: Space, objectives: Sequence[str]) -> dict[str, Any]:
    """The share of each objective's variance over the space that each key explains alone.

    The forest that this is read from (Optuna's evaluator) is fitted to the values of the completed trials: with few of
    them it says what those had in common, and no more.

    Returns {"trials": n, "shares": {objective: {key: share}}, "left_out": [key], "note": text}. `left_out`: keys that
    some trial does not have, or that had one value alone. Where nothing can be said, `shares` is empty and the note
    says why.
    """
    done = [trial for trial in trials if trial.state == "completed"]
    known = [trial for trial in done if all(_is_finite(trial.values.get(name)) for name in objectives)]
    known = known[:: -(-len(known) // MOST_TRIALS) or 1]
    found: dict[str, Any] = {"trials": len(known), "shares": {}, "left_out": [], "note": ""}
    if len(known) < FEWEST_TRIALS:
        found["note"] = (
            f"What mattered can't be said of {len(known)} completed trial{'s' * (len(known) != 1)}: "
            f"it takes {FEWEST_TRIALS}."
        )
        return found
    keys = [key for key in space if all(key in trial.params for trial in known)]
    keys = [key for key in keys if len({str(trial.params[key]) for trial in known}) > 1]
    found["left_out"] = [key for key in space if key not in keys]
    if not keys:
        found["note"] = "What mattered can't be said: no key had two values in all the completed trials."
        return found
    for name in objectives:
        values = [trial.values[name] for trial in known]
        if max(values) > min(values):
            found["shares"][name] = _shares([{k: t.params[k] for k in keys} for t in known], values, space)
    if not found["shares"]:
        found["note"] = "What mattered can't be said: all completed trials came out the same."
    return found


def _shares(params: list[dict[str, Any]], values: list[float], space: Space) -> dict[str, float]:
    """key -> share, largest first; a key alone has all of it."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    from orchestrator.searching.study.space import distribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    known = {key: distribution(space[key]) for key in params[0]}
    for row, value in zip(params, values, strict=True):
        study.add_trial(create_trial(params=row, distributions=known, value=value))
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=SEED))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
