"""What the controller writes: attempts, states, events; only as the leader; twice is once."""

import pytest

from orchestrator.store import AttemptState, Conflict, JobState, Lease, LeaseLost, NewModel, Reason, Store

from .small_jobs import ended, now, planned, running, submitted


def test_an_attempt_goes_from_plan_to_end(store: Store, lease: Lease):
    job = submitted(store)
    attempt = planned(store, lease, job)
    assert (attempt.submission_id, attempt.state) == (f"{job.id}-1", AttemptState.PLANNED)
    assert now(store, job).state is JobState.STARTING
    attempt = store.mark_submitted(lease, attempt.submission_id, "cluster")
    assert (attempt.state, attempt.cluster_id) == (AttemptState.SUBMITTED, "cluster")
    store.mark_alive(lease, attempt.submission_id)
    assert now(store, job).state is JobState.RUNNING
    ended = store.end_attempt(lease, attempt.submission_id, "failed", "user_code", "ValueError: no")
    assert (ended.outcome, ended.cause, ended.detail) == ("failed", "user_code", "ValueError: no")
    job = store.requeue_job(lease, job.id, JobState.RECOVERING, 99, "user_code")
    assert (job.failures, job.not_before_ms, job.cause) == (("user_code",), 99, "user_code")
    again = planned(store, lease, job)
    assert (again.submission_id, again.number) == (f"{job.id}-2", 2)
    assert [one.state for one in store.attempts(job.id)] == [AttemptState.ENDED, AttemptState.PLANNED]
    assert now(store, job).not_before_ms == 0


def test_a_job_has_one_live_attempt(store: Store, lease: Lease):
    job = submitted(store)
    first = planned(store, lease, job)
    assert planned(store, lease, job) == first
    with pytest.raises(Conflict, match=f"{first.submission_id}, which is PLANNED"):
        store.plan_attempt(lease, job.id, ("n3", "n4"), "/runs/x", "run")
    store.mark_submitted(lease, first.submission_id)
    with pytest.raises(Conflict, match="which is SUBMITTED"):
        planned(store, lease, job)
    with pytest.raises(Conflict, match="not confirmed to be gone"):
        store.requeue_job(lease, job.id, JobState.RECOVERING)
    assert len(store.attempts(job.id)) == 1


def test_what_is_done_twice_is_done_once(store: Store, lease: Lease):
    job = running(store, lease)
    assert job.attempt is not None
    name = job.attempt.submission_id

    def all_again() -> int:
        store.mark_alive(lease, name)
        store.mark_leaving(lease, job.id, "preempt")
        return len(store.events(job.id))

    assert all_again() == all_again()
    store.end_attempt(lease, name, "stopped", "preempted")
    before = store.job(job.id), store.events(job.id)
    store.end_attempt(lease, name, "stopped", "preempted")
    assert (store.job(job.id), store.events(job.id)) == before
    store.requeue_job(lease, job.id, JobState.QUEUED, cause="preempted")
    events = store.events(job.id)
    assert store.requeue_job(lease, job.id, JobState.QUEUED, cause="preempted").failures == ("preempted",)
    assert store.events(job.id) == events


def test_a_stale_leader_changes_nothing(store: Store, lease: Lease):
    job = submitted(store)
    assert store.acquire_lease("next", 60) is None
    store.release_lease(lease)
    new = store.acquire_lease("next", 60)
    assert new is not None
    assert new.epoch > lease.epoch
    before = store.events()
    with pytest.raises(LeaseLost, match="no longer the leader"):
        planned(store, lease, job)
    with pytest.raises(LeaseLost):
        store.renew_lease(lease)
    with pytest.raises(LeaseLost):
        store.set_reason(lease, job.id, "stale")
    store.release_lease(lease)
    assert (store.job(job.id), store.events()) == (job, before)
    assert store.renew_lease(new).epoch == new.epoch


def test_a_lease_that_ran_out_is_the_next_ones(store: Store):
    old = store.acquire_lease("a", 0)
    assert old is not None
    assert store.renew_lease(old).epoch == old.epoch
    new = store.acquire_lease("b", 60)
    assert new is not None
    assert store.acquire_lease("a", 60) is None
    with pytest.raises(LeaseLost):
        store.set_cluster_identity(old, "x")
    store.set_cluster_identity(new, "y")
    assert store.cluster_identity() == "y"


def test_cancelling_goes_before_preempting(store: Store, lease: Lease):
    job = running(store, lease)
    job = store.mark_leaving(lease, job.id, "preempt")
    assert job.state is JobState.PREEMPTING
    store.request_cancel(job.id, "ada")
    job = store.mark_leaving(lease, job.id, "cancel")
    assert job.attempt is not None
    assert (job.state, job.attempt.leaving_why) == (JobState.CANCELLING, "cancel")
    assert store.mark_leaving(lease, job.id, "preempt").state is JobState.CANCELLING
    limited = store.mark_leaving(lease, running(store, lease).id, "limit")
    assert limited.attempt is not None
    assert (limited.state, limited.attempt.leaving_why) == (JobState.RUNNING, "limit")
    with pytest.raises(Conflict, match="no live attempt"):
        store.mark_leaving(lease, submitted(store).id, "preempt")


def test_what_waits_says_why(store: Store, lease: Lease):
    waits, runs = submitted(store), running(store, lease)
    store.set_reasons(lease, [Reason(waits.id, "waiting for 4 CPU", 99, "17"), Reason(runs.id, "stale")])
    waits = now(store, waits)
    assert (waits.reason, waits.reserved_ms, waits.behind) == ("waiting for 4 CPU", 99, "17")
    assert now(store, runs).reason == ""
    assert store.set_claim(lease, waits.id, ("n1", "n2")).claim == ("n1", "n2")
    with pytest.raises(Conflict, match="waits for no nodes"):
        store.set_claim(lease, runs.id, ("n1", "n2"))
    planned(store, lease, waits)
    waits = now(store, waits)
    assert (waits.reason, waits.reserved_ms, waits.behind, waits.claim) == ("", None, None, None)


def test_unreachable_is_no_state(store: Store, lease: Lease):
    job = running(store, lease)
    store.set_unreachable(lease, [job.id], 5)
    store.set_unreachable(lease, [job.id], 9)
    assert (now(store, job).state, now(store, job).unreachable_since_ms) == (JobState.RUNNING, 5)
    store.set_unreachable(lease, [job.id], None)
    assert now(store, job).unreachable_since_ms is None
    assert [event.kind for event in store.events(job.id)][-2:] == ["unreachable", "reachable"]


def test_live_jobs_are_those_that_have_not_ended(store: Store, lease: Lease):
    jobs = [ended(store, lease, state) for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)]
    live = [running(store, lease), submitted(store)]
    assert {job.id for job in store.live_jobs()} == {job.id for job in live}
    assert all(job.ended_ms is not None for job in jobs)


def test_events_have_no_gaps_and_can_be_followed(store: Store, lease: Lease):
    job = ended(store, lease, JobState.SUCCEEDED)
    events = store.events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    states = [event.data["new"] for event in events if event.kind == "job"]
    assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert store.events(after_seq=events[2].seq, limit=2) == events[3:5]
    assert store.events(projects=["nobodys"]) == []
    assert {event.job_id for event in store.events(job.id)} == {job.id}


def test_models_are_registered_with_the_success(store: Store, lease: Lease):
    job = running(store, lease)
    assert job.attempt is not None
    store.end_attempt(lease, job.attempt.submission_id, "succeeded")
    models = [NewModel("digits", "dense", "/runs/d", "5bec", "f1", {"parent": None}, {"bytes": 9})]
    for _ in range(2):
        store.finish_job(lease, job.id, JobState.SUCCEEDED, models=models)
    (model,) = store.models("default")
    assert (model.version, model.job_id, model.measurement, model.data_fingerprint) == (1, job.id, {"bytes": 9}, "f1")
    assert len(store.record_models(lease, job.id, [NewModel("digits", "int8", "/runs/q", "5bec")])) == 2
    assert [model.version for model in store.models("default", "digits")] == [2, 1]
