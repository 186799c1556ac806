"""Many at once: a key is one job, one leads, events are numbered in the order of commits."""

import random
from concurrent.futures import ThreadPoolExecutor

from orchestrator.store import JobFilter, Lease, Store

from .small_jobs import new, submitted


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
