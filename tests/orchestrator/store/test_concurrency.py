"""Many at once: a key is one job, one leads, events are numbered in the order of commits."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.store import Conflict, JobFilter, JobState, Lease, Store

from .small_jobs import ended, new, submitted


def test_repeated_keys_are_one_job_each(url: str, store: Store):
    keys = [f"key-{number}" for number in range(10)] * 4
    random.Random(0).shuffle(keys)
    with Store.open(url) as other, ThreadPoolExecutor(8) as pool:
        stores = [store, other] * (len(keys) // 2)
        answers = list(pool.map(lambda pair: pair[0].submit_job(new(), pair[1]), zip(stores, keys, strict=True)))
    assert sum(created for _, created in answers) == 10
    assert len({job.id for job, _ in answers}) == 10
    assert len(store.list_jobs(JobFilter()).items) == 10
    assert [event.seq for event in store.events()] == list(range(1, 11))


def test_one_of_many_leads(url: str, store: Store):
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda number: store.acquire_lease(f"holder-{number}", 60), range(8)))
    assert len([lease for lease in leases if lease is not None]) == 1


def test_one_attempt_is_planned_by_many(store: Store, lease: Lease):
    job = submitted(store)

    def plan(_: int) -> str:
        return store.plan_attempt(lease, job.id, ("n1", "n2"), "/runs/x", "run").submission_id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(plan, range(8))) == {f"{job.id}-1"}
    assert len(store.attempts(job.id)) == 1


@pytest.mark.parametrize("key", ["key", None])
def test_many_resumes_of_a_run_are_one_job(store: Store, lease: Lease, key: str | None):
    """Of the job that failed, and of the one that had resumed it: they have one run."""
    first = ended(store, lease, JobState.FAILED)
    second = ended(store, lease, JobState.FAILED, store.request_resume(first.id, "ada")[0])

    def resume(number: int) -> str | None:
        job = first if key is None and number % 2 else second
        try:
            return store.request_resume(job.id, "ada", key)[0].id
        except Conflict:
            return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(resume, range(8)))
    assert len(set(answers) - {None}) == 1
    assert (None in answers) == (key is None)
    assert len(store.live_jobs()) == 1
