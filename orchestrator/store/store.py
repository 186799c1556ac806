"""The store: every job, attempt, event, project, token and model, in SQLite or PostgreSQL.

Each method is one transaction, and may be called again after StoreUnavailable: it finds what it has done before.
Methods that take a lease raise LeaseLost, and change nothing, when somebody else has become the leader.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from sqlalchemy import select

from jobs.errors import SpecError
from jobs.storage import fsync
from orchestrator.scheduling import Project
from orchestrator.store import access, leases, migrating, paging, pruning, reconciling, registry, rows, submitting
from orchestrator.store import records as r
from orchestrator.store.database import Database, Transaction, is_no_store
from orchestrator.store.errors import StoreUnavailable, StoreUnusable
from orchestrator.store.states import AttemptState, JobState
from orchestrator.store.tables import attempts, events, jobs, projects, settings, tokens

R = TypeVar("R")
_MOST_EVENTS = 10_000


class Store:
    """Open it with `Store.open`; it may be used from several threads, and the database from several processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str) -> "Store":
        """Connects, and brings the schema up to date.

        Args:
            url: `sqlite:///FILE` (made if it is not there) or `postgresql+psycopg://USER@HOST/NAME`.

        Raises SpecError for another address, StoreUnavailable when nothing answers there, StoreUnusable for a database
        that is damaged, of a newer version, or somebody else's.
        """
        store = cls(Database(url))
        try:
            migrating.upgrade(store.database)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def existing(cls, url: str, *, any_schema: bool = False) -> "Store":
        """One that is there, left as it is: for what is done beside a service, which may be of another version.

        Raises SpecError where there is none, StoreUnusable for another schema than this version's, StoreUnavailable.
        """
        database = Database(url, make=False)
        try:
            if not any_schema:
                migrating.check_current(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The database's address, without a password."""
        return self.database.name

    def now_ms(self) -> int:
        """The database's clock."""
        now_ms = self.database.read(lambda c: c.scalar(select(self.database.clock)))
        assert now_ms is not None
        return now_ms

    def ping(self) -> None:
        """Raises StoreUnavailable when the database does not answer."""
        self.now_ms()

    def backup(self, path: Path) -> None:
        """Copies an SQLite store to a new file while it is used. PostgreSQL has pg_dump for that: SpecError.

        Raises StoreUnusable for a file that is no store, StoreUnavailable.
        """
        if not self.database.is_sqlite:
            raise SpecError.at("--store", "not supported here: a backup of PostgreSQL; use pg_dump", self.name)
        if os.path.lexists(path):
            raise SpecError.at("path", "the file exists already", str(path), "a new file")
        if not path.absolute().parent.is_dir():
            raise SpecError.at("path", "no such folder", str(path.parent))
        part = path.with_name(path.name + ".partial")
        part.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(str(self.database.url.database))) as source:
                # Not through the pool, whose connections set the journal's mode: this may be somebody else's file.
                source.execute("SELECT version_num FROM alembic_version").close()
                with closing(sqlite3.connect(part)) as target:
                    source.backup(target)
        except sqlite3.Error as error:
            part.unlink(missing_ok=True)
            if is_no_store(error):
                raise StoreUnusable(f"{self.name} is no store of Thresher's, or a damaged one: {error}") from error
            raise StoreUnavailable(f"{self.name} could not be copied: {error}") from error
        part.chmod(0o600)
        fsync(part)
        part.rename(path)
        fsync(path.absolute().parent)

    def prune(self, before_ms: int, *, dry_run: bool = False) -> pruning.Pruned:
        """Removes jobs of runs that ended before `before_ms`, but for those that models came from; see `pruning`."""
        if dry_run:
            return self.database.read(lambda c: pruning.would_go(c, before_ms))
        gone = pruning.Pruned()
        for some in (pruning.some_runs, pruning.some_events):
            while (more := self.database.write(lambda t, some=some: some(t, before_ms))) != pruning.Pruned():  # type: ignore[misc]
                gone += more
        return gone

    # The leader

    def acquire_lease(self, holder: str, ttl_s: float) -> r.Lease | None:
        """None while another holder's lease has not run out. `holder`: a name that no other process has."""
        return self.database.write(lambda t: leases.acquire(t, holder, round(ttl_s * 1000)))

    def renew_lease(self, lease: r.Lease) -> r.Lease:
        return self.database.write(lambda t: leases.renew(t, lease))

    def release_lease(self, lease: r.Lease) -> None:
        """Others may lead at once. No error when the lease was lost."""
        self.database.write(lambda t: leases.release(t, lease))

    def cluster_identity(self) -> str | None:
        """Of the Ray cluster that was last seen."""
        query = select(settings.c.value).where(settings.c.name == "cluster_identity")
        return self.database.read(lambda c: c.scalar(query))

    def set_cluster_identity(self, lease: r.Lease, identity: str) -> None:
        self._lead(lease, lambda t: leases.set_identity(t, identity))

    # Clients

    def submit_job(self, new: r.NewJob, idempotency_key: str | None = None) -> tuple[r.JobRecord, bool]:
        """The job, and whether it was created: not where the same submission came before under the same key.

        Raises NotFound for an unknown project, Conflict for a key that stands for another submission.
        """
        if new.id is not None and not submitting.JOB_ID.match(new.id):
            raise SpecError.at("id", "not a job's name", new.id, "letters, digits, . _ -; at most 128")
        job_id = new.id or submitting.new_job_id(new.name)
        return self.database.write(lambda t: submitting.submit(t, new, job_id, idempotency_key))

    def job(self, job_id: str) -> r.JobRecord | None:
        row = self.database.read(lambda c: c.execute(rows.select_jobs(jobs.c.id == job_id)).first())
        return None if row is None else rows.job(row)

    def job_by_key(self, project: str, idempotency_key: str) -> r.JobRecord | None:
        """The job that was submitted under this key."""
        where = (jobs.c.project == project) & (jobs.c.idempotency_key == idempotency_key)
        row = self.database.read(lambda c: c.execute(rows.select_jobs(where)).first())
        return None if row is None else rows.job(row)

    def list_jobs(self, which: r.JobFilter, limit: int = 100, cursor: str | None = None) -> r.Page[r.JobRecord]:
        """Newest first. Raises SpecError for a limit or a cursor that is none."""
        return self.database.read(lambda c: paging.page(c, which, limit, cursor))

    def request_cancel(self, job_id: str, by: str) -> r.JobRecord:
        """CANCELLED at once where nothing runs, else CANCELLING. Raises NotFound, and Conflict if it has ended."""
        return self.database.write(lambda t: submitting.request_cancel(t, job_id, by))

    def request_resume(
        self, job_id: str, by: str, idempotency_key: str | None = None
    ) -> tuple[r.JobRecord, bool]:  # fmt: skip
        """A new job in the same run directory, and whether it was created: not where the key was used for it before.

        Raises NotFound; Conflict unless it FAILED or was CANCELLED, and for a key that stands for something else.
        """
        new_id = submitting.new_job_id(job_id.rsplit("-", 1)[0])
        return self.database.write(lambda t: submitting.request_resume(t, job_id, new_id, by, idempotency_key))

    def events(
        self,
        job_id: str | None = None,
        projects: Iterable[str] | None = None,
        after_seq: int = 0,
        limit: int = 1000,
    ) -> list[r.EventRecord]:
        """The oldest events after `after_seq`, of one job, of some projects, or all."""
        query = select(events).where(events.c.seq > after_seq).order_by(events.c.seq).limit(min(limit, _MOST_EVENTS))
        if job_id is not None:
            query = query.where(events.c.job_id == job_id)
        if projects is not None:
            query = query.where(events.c.project.in_(list(projects)))
        return [rows.event(row) for row in self.database.read(lambda c: c.execute(query).all())]

    # The controller

    def live_jobs(self) -> list[r.JobRecord]:
        """All that have not ended, oldest first."""
        query = rows.select_jobs(jobs.c.ended_ms.is_(None)).order_by(jobs.c.submitted_ms, jobs.c.id)
        return [rows.job(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def attempts(self, job_id: str) -> list[r.AttemptRecord]:
        """Oldest first."""
        query = rows.select_attempts(attempts.c.job_id == job_id).order_by(attempts.c.number)
        return [rows.attempt(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def plan_attempt(
        self, lease: r.Lease, job_id: str, placement: Sequence[str], run_dir: str, action: r.Action
    ) -> r.AttemptRecord:
        """QUEUED or RECOVERING → STARTING, with a PLANNED attempt. Conflict if an attempt lives."""
        return self._lead(
            lease, lambda t: reconciling.plan_attempt(t, lease.epoch, job_id, placement, run_dir, action)
        )  # fmt: skip

    def mark_submitted(self, lease: r.Lease, submission_id: str, cluster_id: str | None = None) -> r.AttemptRecord:
        return self._lead(lease, lambda t: reconciling.mark_submitted(t, submission_id, cluster_id))

    def mark_alive(self, lease: r.Lease, submission_id: str) -> r.AttemptRecord:
        """The job becomes RUNNING, unless it is being stopped."""
        return self._lead(lease, lambda t: reconciling.mark_alive(t, submission_id))

    def end_attempt(
        self, lease: r.Lease, submission_id: str, outcome: str, cause: str | None = None, detail: str | None = None
    ) -> r.AttemptRecord:
        """It is certainly gone. A cause is added to the job's `failures`."""
        ended = AttemptState.ENDED
        return self._lead(lease, lambda t: reconciling.end_attempt(t, submission_id, ended, outcome, cause, detail))

    def mark_lost(
        self, lease: r.Lease, submission_id: str, cause: str, detail: str | None = None
    ) -> r.AttemptRecord:  # fmt: skip
        """It is certainly gone, and nobody saw how."""
        lost = AttemptState.LOST
        return self._lead(lease, lambda t: reconciling.end_attempt(t, submission_id, lost, None, cause, detail))

    def finish_job(
        self,
        lease: r.Lease,
        job_id: str,
        state: JobState,
        cause: str | None = None,
        detail: str | None = None,
        models: Sequence[r.NewModel] = (),
    ) -> r.JobRecord:
        """Into a terminal state, its models registered with it. Conflict while an attempt may live."""
        return self._lead(lease, lambda t: reconciling.finish(t, job_id, state, cause, detail, models))

    def requeue_job(
        self,
        lease: r.Lease,
        job_id: str,
        state: JobState,
        not_before_ms: int = 0,
        cause: str | None = None,
        detail: str | None = None,
    ) -> r.JobRecord:
        """Back to QUEUED, or to RECOVERING. Conflict while an attempt may live."""
        return self._lead(lease, lambda t: reconciling.requeue(t, job_id, state, not_before_ms, cause, detail))

    def mark_leaving(self, lease: r.Lease, job_id: str, why: r.Leaving) -> r.JobRecord:
        """The live attempt is about to be told to stop. `limit` leaves the job's state as it is."""
        return self._lead(lease, lambda t: reconciling.mark_leaving(t, job_id, why))

    def set_reason(
        self, lease: r.Lease, job_id: str, reason: str, reserved_ms: int | None = None, behind: str | None = None
    ) -> None:  # fmt: skip
        self.set_reasons(lease, [r.Reason(job_id, reason, reserved_ms, behind)])

    def set_reasons(self, lease: r.Lease, reasons: Sequence[r.Reason]) -> None:
        """Why jobs wait; many in one transaction."""
        if reasons:
            self._lead(lease, lambda t: reconciling.set_reasons(t, reasons))

    def set_unreachable(self, lease: r.Lease, job_ids: Sequence[str], since_ms: int | None) -> None:
        """Since when nothing is known of jobs; None: they answer again. A time that is set already stands."""
        if job_ids:
            self._lead(lease, lambda t: reconciling.set_unreachable(t, sorted(job_ids), since_ms))

    def set_claim(self, lease: r.Lease, job_id: str, placement: Sequence[str] | None) -> r.JobRecord:
        return self._lead(lease, lambda t: reconciling.set_claim(t, job_id, placement))

    def record_models(self, lease: r.Lease, job_id: str, new: Sequence[r.NewModel]) -> list[r.ModelRecord]:
        """All models of the job. An artifact that is registered already keeps its version."""

        def work(transaction: Transaction) -> list[r.ModelRecord]:
            registry.record(transaction, submitting.found(transaction, job_id), new)
            return registry.listed(transaction.connection, None, None, job_id)

        return self._lead(lease, work)

    # Projects, tokens, models

    def put_project(self, project: Project) -> Project:
        """Makes it, or changes it."""
        return self.database.write(lambda t: access.put_project(t, project))

    def project(self, name: str) -> Project | None:
        row = self.database.read(lambda c: c.execute(select(projects).where(projects.c.name == name)).first())
        return None if row is None else rows.project(row)

    def projects(self) -> list[Project]:
        """By name. `default` is there from the beginning."""
        query = select(projects).order_by(projects.c.name)
        return [rows.project(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def delete_project(self, name: str) -> None:
        """With its tokens. Raises NotFound, and Conflict while it has jobs that have not ended."""
        self.database.write(lambda t: access.delete_project(t, name))

    def create_token(
        self, project: str | None, role: r.Role, name: str, expires_ms: int | None = None
    ) -> tuple[r.TokenRecord, str]:
        """The token and its secret, which is kept nowhere. `project` None: all projects. Raises NotFound."""
        new = access.NewToken.draw()
        record = self.database.write(lambda t: access.create_token(t, new, project, role, name, expires_ms))
        return record, new.secret

    def create_first_token(self, name: str = "admin") -> tuple[r.TokenRecord, str] | None:
        """An admin's token for all projects, in a store that never had a token; else None."""
        new = access.NewToken.draw()
        record = self.database.write(lambda t: access.first_token(t, new, name))
        return None if record is None else (record, new.secret)

    def token_by_secret(self, secret: str) -> r.TokenRecord | None:
        """None for a wrong, expired or revoked one."""
        return self.database.read(lambda c: access.by_secret(self.database, c, secret))

    def tokens(self, project: str | None = None) -> list[r.TokenRecord]:
        """Oldest first: those of one project, or all."""
        query = select(tokens).order_by(tokens.c.created_ms, tokens.c.id)
        if project is not None:
            query = query.where(tokens.c.project == project)
        return [rows.token(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def revoke_token(self, token_id: str) -> r.TokenRecord:
        """Raises NotFound. Twice is once."""
        return self.database.write(lambda t: access.revoke(t, token_id))

    def models(
        self, project: str | None = None, name: str | None = None, job_id: str | None = None
    ) -> list[r.ModelRecord]:  # fmt: skip
        """By project and name, newest version first."""
        return self.database.read(lambda c: registry.listed(c, project, name, job_id))

    def model(self, project: str, name: str, reference: int | str) -> r.ModelRecord | None:
        """By version or alias."""
        return self.database.read(lambda c: registry.one(c, project, name, reference))

    def set_alias(self, project: str, name: str, alias: str, version: int) -> r.ModelRecord:
        """Makes the alias, or moves it. Raises NotFound for an unknown version, SpecError for a bad alias."""
        return self.database.write(lambda t: registry.set_alias(t, project, name, alias, version))

    def delete_alias(self, project: str, name: str, alias: str) -> None:
        self.database.write(lambda t: registry.delete_alias(t, project, name, alias))

    def _lead(self, lease: r.Lease, work: Callable[[Transaction], R]) -> R:
        def fenced(transaction: Transaction) -> R:
            leases.fence(transaction, lease)
            return work(transaction)

        return self.database.write(fenced)
