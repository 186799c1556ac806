"""Jobs for the tests of the store, and the way from one state to the next."""

from typing import Any

from orchestrator.scheduling import Demand
from orchestrator.store import AttemptRecord, JobRecord, JobState, Lease, NewJob, Store


def new(name: str = "digits", **values: Any) -> NewJob:
    return NewJob(**{"name": name, "project": "default", "spec": {"name": name}, "spec_hash": "5bec"} | TWO | values)


TWO: dict[str, Any] = {"demand": Demand.of(2, CPU=1)}


def submitted(store: Store, **values: Any) -> JobRecord:
    return store.submit_job(new(**values))[0]


def planned(store: Store, lease: Lease, job: JobRecord) -> AttemptRecord:
    return store.plan_attempt(lease, job.id, ("n1", "n2"), f"/runs/{job.run_id}", "run")


def running(store: Store, lease: Lease, job: JobRecord | None = None) -> JobRecord:
    job = job or submitted(store)
    attempt = planned(store, lease, job)
    store.mark_submitted(lease, attempt.submission_id, "cluster")
    store.mark_alive(lease, attempt.submission_id)
    return now(store, job)


def ended(store: Store, lease: Lease, state: JobState, job: JobRecord | None = None) -> JobRecord:
    job = running(store, lease, job)
    assert job.attempt is not None
    if state is JobState.CANCELLED:
        store.request_cancel(job.id, "ada")
    store.end_attempt(lease, job.attempt.submission_id, "over")
    return store.finish_job(lease, job.id, state)


def now(store: Store, job: JobRecord) -> JobRecord:
    found = store.job(job.id)
    assert found is not None
    return found
