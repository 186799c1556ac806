"""The reconcile loop: what was intended (the store), what is (Ray, run directories), and what follows from it.

The order of every effect is: write the intent, act, write what was seen. Whoever takes over after a crash between two
of them finds the intent and acts again, which does no harm: a submission id is used once, a stop may be repeated.
"""

import json
import logging
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import yaml

from cluster.observe import Holding
from cluster.placement import PLACEMENT_VARIABLE
from jobs.errors import ArtifactError, ClusterUnreachable, JobFailed, SpecError
from orchestrator.controller.evidence import (
    Gone,
    Keep,
    Progress,
    RunEvidence,
    Submit,
    judge,
    run_evidence,
)
from orchestrator.controller.looking import Sight, States, look
from orchestrator.controller.snapshot import snapshot_of, with_taken
from orchestrator.report import read_report
from orchestrator.runs import ATTEMPT_VARIABLE, read_lines
from orchestrator.scheduling import DropClaim, Node, Policy, Preempt, Refuse, Start, Wait, decide
from orchestrator.scheduling.records import Resources
from orchestrator.scheduling.retry import Cause, GiveUp, after_failure
from orchestrator.store import Action, AttemptRecord, JobRecord, JobState, Lease, NewModel, Reason, Store
from orchestrator.store.errors import Conflict, LeaseLost, StoreUnavailable

logger = logging.getLogger(__name__)

SPEC_NAME = "thresher-job.yaml"
_PERIOD_S = 0.5
LEASE_S = 15.0
_IDLE_LOOK_S = 5.0
"""Between looks at the nodes while no job waits for any."""
_SAY_AGAIN_S = 60.0
"""Between two warnings of a trouble that lasts."""
_NO_CLUSTER = "nothing is started: %s"


class Submissions(States, Protocol):
    """What is asked of `cluster.submit.RayJobs`."""

    def submit(self, entrypoint: str, submission_id: str, working_dir: Path | None, env: dict[str, str]) -> object: ...
    def ask_stop(self, submission_id: str) -> None: ...


class ClusterView(Protocol):
    """What is asked of `orchestrator.controller.view.RayCluster`. All raise ClusterUnreachable."""

    def nodes(self) -> tuple[Node, ...]: ...
    def holdings(self) -> Sequence[Holding]: ...
    def identity(self) -> str: ...


class Controller:
    """`step` is one pass; `run` repeats it until it is told to stop."""

    def __init__(
        self,
        store: Store,
        jobs: Submissions,
        cluster: ClusterView,
        runs: Path,
        policy: Policy,
        holder: str | None = None,
    ) -> None:
        self._store, self._jobs, self._cluster = store, jobs, cluster
        self._runs, self._policy = runs.absolute(), policy
        self._holder = holder or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lease: Lease | None = None
        self._renewed_at = 0.0
        self._wake = threading.Event()
        self._ray_jobs: dict[str, str] = {}
        """Submission id -> Ray's id of its driver: of live attempts, and of those that Ray is still clearing away."""
        self._looked_at = -_IDLE_LOOK_S
        self._taken: Mapping[str, Resources] = {}
        self._said: dict[str, float] = {}
        """When each warning was logged last: a trouble that lasts comes up in each pass."""

    def wake(self) -> None:
        """Something was submitted or asked: the next pass begins at once."""
        self._wake.set()

    def taken(self) -> Mapping[str, Resources]:
        """What others than the queue's jobs hold, by node, as it was seen last: seconds ago, while this one leads."""
        return self._taken

    def lease_age_s(self) -> float | None:
        """Seconds since the lease was renewed; None: another one leads, or nobody."""
        return None if self._lease is None else time.monotonic() - self._renewed_at

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._wake.clear()
            try:
                self.step()
            except LeaseLost as error:
                logger.warning("%s", error)
                self._lease = None
            except StoreUnavailable as error:
                self._say_once("the database is away, and nothing is changed: %s", error)
            except OSError as error:
                self._say_once("a run directory cannot be read, and nothing is changed: %s", error)
            self._wake.wait(_PERIOD_S)
        if self._lease is not None:
            self._store.release_lease(self._lease)

    def step(self) -> None:
        """One pass, if this process leads. Raises LeaseLost, StoreUnavailable."""
        self._lease = (
            self._store.renew_lease(self._lease)
            if self._lease is not None
            else self._store.acquire_lease(self._holder, LEASE_S)
        )
        if self._lease is None:
            return
        self._renewed_at = time.monotonic()
        jobs = self._store.live_jobs()
        sights = self._look(jobs)
        for job in jobs:
            try:
                self._reconcile(self._lease, job, sights)
            except Conflict as error:
                logger.info("looked at again in the next pass: %s", error)  # a client changed it meanwhile
        jobs = self._store.live_jobs()
        waits = any(job.state.waits for job in jobs)
        if not waits and time.monotonic() - self._looked_at < _IDLE_LOOK_S:
            return
        try:
            nodes = self._nodes(jobs)
        except ClusterUnreachable as error:
            self._say_once(_NO_CLUSTER, error)
            return
        self._said.pop(_NO_CLUSTER, None)
        if waits:
            self._decide(self._lease, nodes, jobs)

    def _say_once(self, what: str, error: Exception) -> None:
        """Logs a warning, and then again each minute that it holds."""
        now = time.monotonic()
        if now - self._said.get(what, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said[what] = now
            logger.warning(what, error)

    # --- what is -----------------------------------------------------------------------------------------------

    def _look(self, jobs: Sequence[JobRecord]) -> dict[str, Sight]:
        live = [job.attempt.submission_id for job in jobs if job.attempt is not None and job.attempt.state.live]
        sights = look(self._jobs, live)
        self._ray_jobs |= {name: sight.ray_job for name, sight in sights.items() if sight.ray_job}
        return sights

    def _nodes(self, jobs: Sequence[JobRecord]) -> tuple[Node, ...]:
        """The nodes, with what others hold there. Raises ClusterUnreachable."""
        nodes, holdings = self._cluster.nodes(), self._cluster.holdings()
        holders = {holding.ray_job for holding in holdings}
        live = {job.attempt.submission_id for job in jobs if job.attempt is not None and job.attempt.state.live}
        if holders - set(self._ray_jobs.values()) and live - self._ray_jobs.keys():
            self._look(jobs)  # a driver of our own may have connected since; it must not be taken for somebody else's
        self._ray_jobs = {name: job for name, job in self._ray_jobs.items() if name in live or job in holders}
        nodes = with_taken(nodes, holdings, jobs, self._ray_jobs)
        self._taken = {node.name: node.taken for node in nodes}
        self._looked_at = time.monotonic()
        return nodes

    def _reconcile(self, lease: Lease, job: JobRecord, sights: Mapping[str, Sight]) -> None:
        attempt = job.attempt
        if attempt is None or not attempt.state.live:
            self._settle(lease, job)
            return
        if job.state is JobState.CANCELLING and attempt.leaving_why != "cancel":
            # First, so that what never reached Ray is not submitted any more.
            marked = self._store.mark_leaving(lease, job.id, "cancel").attempt
            assert marked is not None
            attempt = marked
        sight = sights[attempt.submission_id]
        identity = self._identity() if sight.seen == "unknown" else None
        verdict = judge(attempt, sight.seen, sight.message, self._evidence(attempt), identity)
        unreachable = isinstance(verdict, Keep) and not verdict.reachable
        if unreachable != (job.unreachable_since_ms is not None):
            self._store.set_unreachable(lease, [job.id], self._store.now_ms() if unreachable else None)
        match verdict:
            case Submit():
                self._submit(lease, job, attempt)
            case Progress(alive):
                if attempt.submitted_ms is None:
                    self._store.mark_submitted(lease, attempt.submission_id, self._identity())
                if alive and attempt.alive_ms is None:
                    self._store.mark_alive(lease, attempt.submission_id)
                self._ask_to_leave(lease, job, attempt)
            case Gone(outcome, cause, detail):
                if verdict.seen_to_end or cause is None:
                    self._store.end_attempt(lease, attempt.submission_id, outcome, cause and cause.name, detail)
                else:
                    self._store.mark_lost(lease, attempt.submission_id, cause.name, detail)
                self._conclude(lease, job, verdict)

    def _settle(self, lease: Lease, job: JobRecord) -> None:
        """A crash fell between the end of the attempt and what follows from it for the job."""
        attempt = job.attempt
        if attempt is None or job.state.waits:
            return
        verdict = judge(attempt, "ended", attempt.detail or "", self._evidence(attempt))
        assert isinstance(verdict, Gone)
        self._conclude(lease, job, verdict)

    def _conclude(self, lease: Lease, job: JobRecord, gone: Gone) -> None:
        if gone.outcome == "succeeded":
            models = self._models(job)
            self._store.finish_job(lease, job.id, JobState.SUCCEEDED, models=models)
            return
        newest = self._store.job(job.id)
        assert newest is not None
        if newest.state is JobState.CANCELLING:
            self._store.finish_job(lease, job.id, JobState.CANCELLED, "cancelled", gone.detail)
            return
        causes = [Cause[name] for name in newest.failures]
        again = after_failure(job.id, causes, self._max_failures(job), self._store.now_ms())
        if gone.final or isinstance(again, GiveUp):
            cause = "time_limit" if gone.outcome == "limit" else "refused" if gone.refused else "user_code"
            self._store.finish_job(lease, job.id, JobState.FAILED, cause, gone.detail)
            return
        back = JobState.QUEUED if gone.outcome == "preempted" else JobState.RECOVERING
        name = gone.cause.name if gone.cause else None
        self._store.requeue_job(lease, job.id, back, again.not_before_ms, name, gone.detail)

    def _evidence(self, attempt: AttemptRecord) -> RunEvidence:
        folder = Path(attempt.run_dir)
        try:
            complete = read_report(folder).state == "succeeded"
        except ArtifactError:
            complete = False
        return run_evidence(read_lines(folder / "events.jsonl"), attempt.submission_id, complete)

    def _identity(self) -> str | None:
        try:
            return self._cluster.identity()
        except ClusterUnreachable:
            return None

    @staticmethod
    def _max_failures(job: JobRecord) -> int:
        return int((job.spec.get("retry") or {}).get("max_failures", 3))

    @staticmethod
    def _models(job: JobRecord) -> list[NewModel]:
        """The selected artifact, with what it came from."""
        assert job.run_dir is not None
        report = read_report(Path(job.run_dir))
        artifact = next(one for one in report.artifacts if one.name == report.selected)
        document = artifact.to_json()
        lineage = {key: document.get(key) for key in ("parent", "stage", "recipe")} | {"run_id": report.run_id}
        return [
            NewModel(
                name=job.name,
                artifact=artifact.name,
                path=str(Path(job.run_dir) / "artifacts" / artifact.name),
                spec_hash=job.spec_hash,
                data_fingerprint=report.dataset.get("fingerprint"),
                lineage=lineage,
                measurement=document.get("measurement") or {},
            )
        ]

    # --- what follows ------------------------------------------------------------------------------------------

    def _decide(self, lease: Lease, nodes: tuple[Node, ...], jobs: Sequence[JobRecord]) -> None:
        projects = self._store.projects()
        snapshot = snapshot_of(self._store.now_ms(), nodes, jobs, projects, self._policy)
        by_id = {job.id: job for job in jobs}
        reasons: list[Reason] = []
        for decision in decide(snapshot):
            try:
                match decision:
                    case Start(job, placement):
                        run_dir = by_id[job].run_dir or str(self._runs / by_id[job].run_id)
                        action: Action = "resume" if (Path(run_dir) / "spec.yaml").exists() else "run"
                        attempt = self._store.plan_attempt(lease, job, placement, run_dir, action)
                        self._submit(lease, by_id[job], attempt)
                    case Preempt(for_job, victims, placement):
                        self._store.set_claim(lease, for_job, placement)
                        for victim in victims:
                            self._store.mark_leaving(lease, victim, "preempt")
                    case DropClaim(job):
                        self._store.set_claim(lease, job, None)
                    case Refuse(job, reason):
                        self._store.finish_job(lease, job, JobState.FAILED, "infeasible", reason)
                    case Wait(job, reason, reserved_ms, behind):
                        reasons.append(Reason(job, reason, reserved_ms, behind))
            except Conflict as error:
                logger.info("decided again in the next pass: %s", error)
        self._store.set_reasons(lease, reasons)

    def _submit(self, lease: Lease, job: JobRecord, attempt: AttemptRecord) -> None:
        """The intent stands in the store. A lost reply leaves it PLANNED: the next pass asks Ray what became of it."""
        self._store.renew_lease(lease)  # who was overtaken does not submit either
        folder = self._runs / ".service" / "jobs" / job.run_id / "code"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(job.spec, sort_keys=False, allow_unicode=True)
            (folder / SPEC_NAME).write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("%s is submitted once the spec can be written: %s", attempt.submission_id, error)
            return
        identity = self._identity()
        if identity is not None:
            self._store.set_cluster_identity(lease, identity)
        # What was planned may have begun, under a head that is gone: then its run is there, and is gone on with.
        began = (Path(attempt.run_dir) / "spec.yaml").exists()
        try:
            self._jobs.submit(
                entrypoint(self._runs, Path(attempt.run_dir).name, "resume" if began else attempt.action),
                attempt.submission_id,
                folder,
                {
                    ATTEMPT_VARIABLE: attempt.submission_id,
                    PLACEMENT_VARIABLE: json.dumps(attempt.placement),
                },
            )
        except ClusterUnreachable as error:
            logger.warning("%s: %s", attempt.submission_id, error)
            return
        except (SpecError, JobFailed) as error:
            self._store.end_attempt(lease, attempt.submission_id, "lost", Cause.infrastructure.name, str(error))
            self._conclude(lease, job, Gone("lost", Cause.infrastructure, str(error)))
            return
        self._store.mark_submitted(lease, attempt.submission_id, identity)

    def _ask_to_leave(self, lease: Lease, job: JobRecord, attempt: AttemptRecord) -> None:
        """Says so again in every pass, until it is gone: to stop is to ask, and a request can be lost."""
        if attempt.leaving_why is None:
            began_ms = attempt.alive_ms
            if job.limit_ms is None or began_ms is None or self._store.now_ms() < began_ms + job.limit_ms:
                return
            self._store.mark_leaving(lease, job.id, "limit")
        try:
            self._jobs.ask_stop(attempt.submission_id)
        except (ClusterUnreachable, SpecError, JobFailed) as error:
            logger.info("%s is asked to stop again: %s", attempt.submission_id, error)


def entrypoint(runs: Path, run_id: str, action: str, python: Sequence[str] = (sys.executable,)) -> str:
    """The shell command of an attempt. `exec`: the signal to stop must reach the driver, not a shell around it."""
    words = [*python, "-m", "orchestrator.cli"]
    words += ["resume", run_id] if action == "resume" else ["run", SPEC_NAME, "--run-id", run_id]
    return "exec " + shlex.join([*words, "--address", "auto", "--runs", str(runs)])
