"""What is old and needed by nobody goes; runs go whole; models and what they came from stay."""

from orchestrator.scheduling import Project
from orchestrator.store import JobFilter, JobState, Lease, NewModel, Store

from .small_jobs import ended, new, now, running, submitted


def ids(store: Store) -> set[str]:
    return {job.id for job in store.list_jobs(JobFilter(), limit=1000).items}


def test_only_what_is_old_and_needed_by_nobody_goes(store: Store, lease: Lease):
    store.put_project(Project("other"))
    failed, cancelled = ended(store, lease, JobState.FAILED), ended(store, lease, JobState.CANCELLED)
    chain = ended(store, lease, JobState.FAILED)
    resumed, _ = store.request_resume(chain.id, "ada")
    made = ended(store, lease, JobState.SUCCEEDED)
    store.record_models(lease, made.id, [NewModel("digits", "dense", "/x", "5bec")])
    source = ended(store, lease, JobState.SUCCEEDED)
    child = ended(store, lease, JobState.SUCCEEDED)
    lineage = {"run_id": source.run_id}
    store.record_models(lease, child.id, [NewModel("small", "dense", "/x", "5bec", lineage=lineage)])
    keyed, _ = store.submit_job(new(), "key")
    store.request_cancel(keyed.id, "ada")
    waits, runs = submitted(store), running(store, lease)
    stay = {chain.id, resumed.id, made.id, source.id, child.id, waits.id, runs.id}
    before_ms = store.now_ms() + 1
    seen = store.events()

    planned = store.prune(before_ms, dry_run=True)
    assert ids(store) == stay | {failed.id, cancelled.id, keyed.id}
    gone = store.prune(before_ms)
    assert gone == planned
    assert set(gone.jobs) == {failed.id, cancelled.id, keyed.id} == set(gone.runs)
    assert set(gone.submissions) == {f"{failed.id}-1", f"{cancelled.id}-1"}
    assert ids(store) == stay
    assert store.attempts(failed.id) == []
    left = store.events()
    assert len(seen) - len(left) == gone.num_events > 0
    assert left == [event for event in seen if event.job_id in stay]
    assert {model.name for model in store.models()} == {"digits", "small"}
    assert store.submit_job(new(), "key")[1]  # the key stands for nothing any more
    assert store.events()[-1].seq == seen[-1].seq + 1
    assert len(store.prune(before_ms).jobs) == 0


def test_what_ended_later_stays(store: Store, lease: Lease):
    old_ms = store.now_ms()
    job = ended(store, lease, JobState.FAILED)
    assert store.prune(old_ms).jobs == ()
    assert now(store, job) == job


def test_a_chain_goes_as_a_whole(store: Store, lease: Lease):
    first = ended(store, lease, JobState.FAILED)
    second = ended(store, lease, JobState.FAILED, store.request_resume(first.id, "ada")[0])
    gone = store.prune(store.now_ms() + 1)
    assert set(gone.jobs) == {first.id, second.id}
    assert gone.runs == (first.run_id,)


def test_many_go_in_several_transactions(store: Store):
    for number in range(105):
        job, _ = store.submit_job(new(name=f"j{number}"))
        store.request_cancel(job.id, "ada")
    assert len(store.prune(store.now_ms() + 1).jobs) == 105
    assert ids(store) == set()
    assert store.events() == []
