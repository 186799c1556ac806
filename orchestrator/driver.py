"""Who drives a job: its run directory, its connection to Ray, its workers, and what a signal does to it."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.connect import Connection, connect
from cluster.gang import Gang
from cluster.placement import given_placement
from cluster.trainer import TrainGroup
from jobs.code import copy_modules
from jobs.context import WorkRef
from jobs.errors import ClusterUnreachable, Interrupted, SpecError, ThresherError
from jobs.records import JobPlan, RunReport
from jobs.spec import JobSpec
from jobs.storage import read_json, write_json
from orchestrator.pipeline import Found, Job, explore, perform, prepare
from orchestrator.planning.layouts import planned_layouts
from orchestrator.planning.plan import plan_job
from orchestrator.runs import ATTEMPT_VARIABLE, Run, Storage
from orchestrator.searching.watching import Watcher
from orchestrator.stages import Stages

Listener = Callable[[dict[str, Any]], None]

GOAL = "goal.json"
"""In the directory of a run that ends with its search: what a resumed one is to do."""


def run(
    spec: JobSpec,
    *,
    runs: str | Path = "runs",
    address: str | None = None,
    listeners: tuple[Listener, ...] = (),
    run_id: str | None = None,
) -> RunReport:
    """Runs a job to its end, here or on the Ray cluster at `address`. Returns the report; it is on disk as well.

    With a `run_id` the run directory has that name and stays, whatever happens: who gave it reads there what did.

    Raises:
        SpecError: the spec or its data are wrong; no run is left behind.
        JobFailed: the work did not succeed; `resume` goes on from what is complete.
        ClusterUnreachable: no cluster answers at `address`.
        Interrupted: by the user or a signal.
    """
    storage = Storage.at(runs)
    if run_id is not None:
        created = storage.create_run(spec, run_id)
        return resume_run(created, storage, address=address, listeners=listeners)
    plan_job(spec, storage)
    return begin(storage.create_run(spec), storage, address=address, listeners=listeners)


def begin(
    created: Run,
    storage: Storage,
    *,
    address: str | None,
    listeners: tuple[Listener, ...],
    watcher: Watcher | None = None,
    on_found: Callable[[Found], None] = lambda found: None,
) -> RunReport:
    """Drives a run that was just created; its directory goes where it could not even start."""
    try:
        return resume_run(created, storage, address=address, listeners=listeners, watcher=watcher, on_found=on_found)
    except (SpecError, ClusterUnreachable):
        if not (created.folder / "stages").exists():
            shutil.rmtree(created.folder)  # nothing is complete: there is nothing to resume
        raise


def resume(
    name: str | Path, *, runs: str | Path = "runs", address: str | None = None, listeners: tuple[Listener, ...] = ()
) -> RunReport:
    """Goes on with a run that was broken off, by its directory or its id. Complete stages are not run again."""
    storage = Storage.at(runs)
    found = storage.find_run(str(name))
    return resume_run(found, Storage(found.folder.parent), address=address, listeners=listeners)


def resume_run(
    run: Run,
    storage: Storage,
    *,
    address: str | None,
    listeners: tuple[Listener, ...],
    watcher: Watcher | None = None,
    on_found: Callable[[Found], None] = lambda found: None,
) -> RunReport:
    """Drives a run whose directory is there, from wherever it stands.

    Args:
        watcher: looks on at the search, and may end it early.
        on_found: gets what the search found, of a run that ends with it.
    """
    watcher = watcher or Watcher()
    run.listeners += [*listeners, watcher]
    with run.driving(), _stop_on_sigterm():
        attempt = {"attempt": os.environ[ATTEMPT_VARIABLE]} if ATTEMPT_VARIABLE in os.environ else {}
        run.event("started", run_id=run.id, run_dir=str(run.folder), name=run.spec.name, **attempt)
        try:
            report = _drive(run, storage, address, watcher, on_found)
        except (KeyboardInterrupt, Interrupted) as error:
            run.event("interrupted")
            raise Interrupted(f"stopped; go on with: thresher resume {run.folder}") from error
        except ThresherError as error:
            run.event("failed", error=type(error).__name__, message=str(error))
            raise
        run.event("finished", state=report.state, selected=report.selected)
        return report


def _drive(
    run: Run, storage: Storage, address: str | None, watcher: Watcher, on_found: Callable[[Found], None]
) -> RunReport:
    spec = run.spec
    plan = plan_job(spec, storage)
    dataset = prepare(run, spec, plan, storage)
    write_json(run.folder / "plan.json", plan.to_json())
    started = time.monotonic()
    run.event("connecting", address=address)
    with (
        _modules(spec, travel=address is not None) as modules,
        connect(address, working_dir=modules, requirements=spec.code.requirements) as connection,
        _stop_on_sigterm(),  # Ray has put its own handler in place of ours
        ExitStack() as stack,
    ):
        run.event("connected", seconds=time.monotonic() - started)
        workers = Workers(run, spec, plan, stack)
        job = Job(
            run=run,
            spec=spec,
            plan=plan,
            storage=storage,
            dataset=dataset,
            release_workers=workers.release,
            stages=Stages(
                storage=storage,
                code=plan.hashes["code"],
                dataset=dataset,
                group=workers.get,
                layouts=planned_layouts(plan),
                # Not the plan's: a searched batch is divided anew.
                micro_batch=None if spec.layout == "auto" else spec.layout.micro_batch,
                retry=spec.retry,
                on_report=run.log,
                on_stage=run.stage_done,
                should_stop=lambda: False,
            ),
            slots=_slots(connection, spec, plan.demand.fewest_workers),
            trials=[],
            watcher=watcher,
        )
        if not _ends_with_its_search(run):
            return perform(job)
        found, report = explore(job)
        on_found(found)
        return report


def _ends_with_its_search(run: Run) -> bool:
    path = run.folder / GOAL
    return path.exists() and read_json(path) == {"goal": "search"}


@contextmanager
def _modules(spec: JobSpec, *, travel: bool) -> Iterator[Path | None]:
    """The folder with the user's modules: where they lie, or a copy without anything else, to be sent."""
    folder = Path(spec.code.working_dir).absolute()
    if not spec.uses_own_code:
        yield None
    elif not travel:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="thresher-code-") as copy:
            copy_modules(folder, Path(copy))
            yield Path(copy)


def _slots(connection: Connection, spec: JobSpec, workers: int) -> int:
    """How many gangs of a trial's size the free resources hold. On several nodes fewer may fit; Tune then waits."""
    if given_placement() is not None:
        return 1  # the rest of the cluster was not given to this job
    free, resources = connection.free(), spec.resources
    fits = [free.get("CPU", 0.0) // (workers * resources.cpus_per_worker)]
    if resources.gpus_per_worker:
        fits.append(free.get("GPU", 0.0) // (workers * resources.gpus_per_worker))
    return max(1, int(min(fits)))


class Workers:
    """The gang that runs the stages: started when the first stage really has to run, kept warm for the others.

    During a search its seats are needed by the trials, so it ends before one.
    """

    def __init__(self, run: Run, spec: JobSpec, plan: JobPlan, stack: ExitStack) -> None:
        self.run, self.spec, self.stack = run, spec, stack
        self.sizes = sorted(layout.size for layout in planned_layouts(plan))
        self.gang: Gang | TrainGroup | None = None

    def get(self) -> Gang | TrainGroup:
        if self.gang is None:
            started = time.monotonic()
            resources = self.spec.resources
            runtime: type[Gang | TrainGroup] = Gang if resources.runtime == "gang" else TrainGroup
            self.gang = runtime(
                self.sizes,
                resources.cpus_per_worker,
                resources.gpus_per_worker,
                warm_up=WorkRef("jobs.train.mesh:warm_up"),
                stall_timeout_s=self.spec.retry.stall_timeout_s,
            )
            self.stack.callback(self.gang.stop)
            self.run.event(
                "workers_started",
                workers=self.gang.size,
                seconds=time.monotonic() - started,
                queued_s=self.gang.queued_s,
            )
        return self.gang

    def release(self) -> None:
        if self.gang is not None:
            self.gang.stop()
            self.gang = None


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM is taken as an interruption by the user: workers are stopped, and the run can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
