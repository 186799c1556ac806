"""A search from Python: run on its own, looked on by callbacks, ended early where they say so."""

from pathlib import Path

from jobs.errors import SpecError
from jobs.spec import JobSpec
from jobs.storage import write_json
from orchestrator.driver import GOAL, Listener, begin
from orchestrator.pipeline import Found
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage
from orchestrator.searching.result import SearchResult
from orchestrator.searching.watching import OnEpoch, OnTrial, Stop, Watcher


def search(
    spec: JobSpec,
    *,
    runs: str | Path = "runs",
    address: str | None = None,
    on_trial: OnTrial | None = None,
    on_epoch: OnEpoch | None = None,
    stop: Stop | None = None,
    listeners: tuple[Listener, ...] = (),
) -> SearchResult:
    """Runs a job's search and no more, here or on the Ray cluster at `address`, in a run directory of its own.

    Args:
        on_trial: called with each trial that ended. Those that an earlier search finished already are not run, and
            not told, again.
        on_epoch: called with each epoch of each trial, as a `TrialEpoch`.
        stop: called after each trial with what its phase has found so far; True ends the search. So does a callback
            that raises or returns `StopSearch`. Running trials then end at their next epoch and stay unfinished:
            another search of the same spec, or a run, goes on where this one ended.

    Raises:
        SpecError: the spec or its data are wrong, or it has no `search`; no run is left behind.
        JobFailed: every trial failed, or the work did not succeed; `resume` goes on from what is complete.
        ClusterUnreachable: no cluster answers at `address`.
        Interrupted: by the user or a signal.
        Exception: what a callback raised, after the running trials have ended.
    """
    if spec.search is None:
        raise SpecError.at("search", "there is nothing to search", allowed="a section with a space")
    storage = Storage.at(runs)
    plan_job(spec, storage)
    created = storage.create_run(spec)
    write_json(created.folder / GOAL, {"goal": "search"})
    watcher = Watcher(on_trial=on_trial, on_epoch=on_epoch, stop=stop)
    found: list[Found] = []
    begin(created, storage, address=address, listeners=listeners, watcher=watcher, on_found=found.append)
    watcher.raise_error()
    (one,) = found
    return SearchResult(trials=one.trials, best=one.best, base=one.base, ended=watcher.ended, run_dir=created.folder)
