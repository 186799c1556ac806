"""Where a run's wall time went, from its events alone. Pure."""

from typing import Any

from jobs.records import Goodput


def goodput(events: list[dict[str, Any]], slots: int = 1) -> Goodput:
    """Adds up a run's events over all its attempts.

    queued: waiting for room on the cluster. productive: stages at work, without what is named below. startup:
    connecting to Ray and starting workers, and in a search the time in which its seats held no trial. checkpoint:
    training held up by a save. recompute: steps done again after a loss. restart: from the loss of a worker to the
    first sign of life after it, and the forming of a larger group. Time between attempts, in which no driver lived,
    does not count.

    Args:
        slots: how many trials ran at a time.
    """
    wall = queued = startup = stage_s = checkpoint = recompute = restart = 0.0
    restarts: list[dict[str, Any]] = []
    began = last = lost_at = None
    trial_s, search_s = 0.0, 0.0
    stage_at: float | None = None
    newest_step: dict[str, int] = {}
    step_s: dict[str, float] = {}
    for event in events:
        kind, t = event["event"], event["t"]
        if kind == "started":
            if began is not None and last is not None:
                wall += last - began
            if stage_at is not None and last is not None:
                stage_s += last - stage_at  # broken off: what it did up to its last checkpoint counts
            began, lost_at, stage_at = t, None, None
        last = t
        if kind in ("connected", "workers_started"):
            queued += event.get("queued_s", 0.0)
            startup += event["seconds"] - event.get("queued_s", 0.0)
            if stage_at is not None:
                stage_s -= event["seconds"]  # which its own seconds hold as well
        elif kind == "stage_started" and event["stage"] != "prepare":
            stage_at = t
        elif kind == "prepared":
            stage_s += event["seconds"]
        elif kind == "stage" and not event["reused"] and not event["stage"].startswith("search"):
            stage_at = None
            stage_s += event["seconds"]
            checkpoint += event.get("checkpoint_s") or 0.0
        elif kind == "search_finished":
            search_s += event["seconds"]
        elif kind == "trial":
            trial_s += event["seconds"]
        elif kind == "restart":
            restarts.append({"stage": event["stage"], "cause": event["cause"], "t": t})
            lost_at = t
        elif kind == "resize" and lost_at is None:
            restarts.append({"stage": event["stage"], "cause": f"grew to {event['workers']} workers", "t": t})
            restart += event["seconds"]
        elif kind == "resumed":
            before = newest_step.get(event["label"], event["step"])
            recompute += max(0, before - event["step"]) * step_s.get(event["label"], 0.0)
        elif kind == "step":
            label, step = event["label"], event["step"]
            if step > newest_step.get(label, 0) and "step_s" in event:
                step_s[label] = event["step_s"]
            newest_step[label] = step
        if lost_at is not None and kind in ("resumed", "step", "epoch", "stage"):
            restart += t - lost_at
            lost_at = None
    if began is not None and last is not None:
        wall += last - began
    busy = min(search_s, trial_s / max(1, slots))
    startup += search_s - busy
    productive = max(0.0, stage_s + busy - checkpoint - recompute - restart)
    return Goodput(
        wall_s=wall,
        queued_s=queued,
        startup_s=startup,
        productive_s=productive,
        checkpoint_s=checkpoint,
        recompute_s=recompute,
        restart_s=restart,
        restarts=tuple(restarts),
        ettr=min(1.0, productive / (wall - queued)) if wall > queued else 0.0,
    )
