"""What clients ask for: each submission is one job, whatever is repeated; pages; cancel and resume."""

import pytest

from jobs.errors import SpecError
from orchestrator.scheduling import Project
from orchestrator.store import Conflict, JobFilter, JobState, Lease, NotFound, Store, new_job_id

from .small_jobs import ended, new, now, planned, running, submitted


def test_what_is_submitted_comes_back(store: Store):
    asked = new(priority=7, limit_ms=60_000, has_code=True, submitted_by="ada", run_dir="/runs/x", spec={"a": [1, "é"]})
    before = store.now_ms()
    job, created = store.submit_job(asked)
    assert created
    assert store.job(job.id) == job
    assert (job.state, job.spec, job.demand, job.priority) == (JobState.QUEUED, {"a": [1, "é"]}, asked.demand, 7)
    assert (job.limit_ms, job.has_code, job.submitted_by, job.run_dir) == (60_000, True, "ada", "/runs/x")
    assert (job.run_id, job.failures, job.claim, job.attempt) == (job.id, (), None, None)
    assert before <= job.submitted_ms <= store.now_ms()
    assert store.job("other") is None


def test_a_repeated_submission_is_the_first_one(store: Store):
    first, created = store.submit_job(new(), "key")
    again, created_again = store.submit_job(new(), "key")
    assert (created, created_again) == (True, False)
    assert again == first
    assert store.job_by_key("default", "key") == first
    assert told(store) == ["QUEUED"]


def test_a_key_stands_for_one_submission_of_a_project(store: Store):
    store.put_project(Project("other"))
    first, _ = store.submit_job(new(), "key")
    with pytest.raises(Conflict, match=f"'key' was used before, for another submission.*{first.id}"):
        store.submit_job(new(priority=1), "key")
    other, created = store.submit_job(new(project="other"), "key")
    assert created
    assert other.id != first.id


def test_a_job_may_be_named_beforehand(store: Store):
    name = new_job_id("digits")
    job, created = store.submit_job(new(id=name))
    assert (job.id, created) == (name, True)
    assert store.submit_job(new(id=name)) == (job, False)
    with pytest.raises(Conflict, match=name):
        store.submit_job(new(id=name, priority=3))
    with pytest.raises(SpecError, match="not a job's name"):
        store.submit_job(new(id="../etc"))


def test_a_project_must_be_there(store: Store):
    with pytest.raises(NotFound, match="no project 'nobodys'"):
        store.submit_job(new(project="nobodys"))
    assert store.list_jobs(JobFilter()).items == ()


def test_pages_go_from_new_to_old_and_leave_nothing_out(store: Store):
    made = [submitted(store, name=f"j{number}") for number in range(25)]
    seen: list[str] = []
    cursor = None
    while True:
        page = store.list_jobs(JobFilter(), limit=10, cursor=cursor)
        seen += [job.id for job in page.items]
        submitted(store, name="late")  # comes meanwhile: disturbs nothing
        cursor = page.next_cursor
        if cursor is None:
            break
    expected = sorted(made, key=lambda job: (job.submitted_ms, job.id), reverse=True)
    assert seen == [job.id for job in expected]
    with pytest.raises(SpecError, match="cursor"):
        store.list_jobs(JobFilter(), cursor="1; drop table jobs")
    with pytest.raises(SpecError, match="limit"):
        store.list_jobs(JobFilter(), limit=0)


def test_filters_are_met_together(store: Store, lease: Lease):
    for name in ("a", "b"):
        store.put_project(Project(name))
    old = [submitted(store, project=project, name=name) for project in ("a", "b") for name in ("x", "y")]
    run = running(store, lease, old[0])

    def names(**values: object) -> set[str]:
        return {job.id for job in store.list_jobs(JobFilter(**values)).items}  # type: ignore[arg-type]

    assert names(projects=("a",)) == {old[0].id, old[1].id}
    assert names(projects=("a", "b"), states=(JobState.QUEUED,)) == {job.id for job in old[1:]}
    assert names(states=(JobState.QUEUED, JobState.RUNNING), name="x") == {old[0].id, old[2].id}
    assert names(states=(JobState.RUNNING,)) == {run.id}
    assert names(projects=(), states=(JobState.RUNNING,)) == set()
    assert names(since_ms=store.now_ms() + 1000) == set()
    assert names(since_ms=old[0].submitted_ms, name="y", projects=("b",)) == {old[3].id}
    many = (*(f"p{number}" for number in range(100)), "b")
    assert names(projects=many) == {old[2].id, old[3].id}


def test_a_waiting_job_is_cancelled_at_once(store: Store):
    job = store.request_cancel(submitted(store).id, "ada")
    assert (job.state, job.cancel_requested_by) == (JobState.CANCELLED, "ada")
    assert job.ended_ms is not None
    with pytest.raises(Conflict) as refused:
        store.request_cancel(job.id, "ada")
    assert refused.value.state == "CANCELLED"
    with pytest.raises(NotFound):
        store.request_cancel("other", "ada")


def test_a_job_with_an_attempt_is_cancelled_when_that_is_gone(store: Store, lease: Lease):
    job = submitted(store)
    attempt = planned(store, lease, job)
    assert store.request_cancel(job.id, "ada").state is JobState.CANCELLING
    assert store.request_cancel(job.id, "bob").cancel_requested_by == "ada"
    with pytest.raises(Conflict, match="not confirmed to be gone"):
        store.finish_job(lease, job.id, JobState.CANCELLED)
    store.end_attempt(lease, attempt.submission_id, "stopped")
    assert store.finish_job(lease, job.id, JobState.CANCELLED).state is JobState.CANCELLED


def test_resuming_makes_a_new_job_of_the_same_run(store: Store, lease: Lease):
    failed = ended(store, lease, JobState.FAILED)
    job, created = store.request_resume(failed.id, "ada")
    assert created
    assert job.id != failed.id
    assert (job.resumes, job.run_id, job.run_dir) == (failed.id, failed.run_id, failed.run_dir)
    assert (job.state, job.spec, job.demand) == (JobState.QUEUED, failed.spec, failed.demand)
    assert now(store, failed).state is JobState.FAILED
    with pytest.raises(Conflict, match=f"{job.id} goes on with its run already"):
        store.request_resume(failed.id, "ada")
    again, _ = store.request_resume(store.request_cancel(job.id, "ada").id, "ada")
    assert (again.resumes, again.run_id) == (job.id, failed.id)


def test_a_repeated_resume_is_the_first_one(store: Store, lease: Lease):
    failed, other = ended(store, lease, JobState.FAILED), ended(store, lease, JobState.FAILED)
    job, created = store.request_resume(failed.id, "ada", "key")
    assert created
    assert store.request_resume(failed.id, "ada", "key") == (job, False)
    again = ended(store, lease, JobState.FAILED, job)
    assert store.request_resume(failed.id, "ada", "key") == (again, False)  # also once it has ended
    with pytest.raises(Conflict, match=f"'key' was used before, for another submission.*{job.id}"):
        store.request_resume(other.id, "ada", "key")
    with pytest.raises(Conflict, match="'key' was used before"):
        store.submit_job(new(), "key")
    assert store.request_resume(failed.id, "ada", "another")[1]
    assert len(store.list_jobs(JobFilter()).items) == 4


def test_only_what_ended_without_success_is_resumed(store: Store, lease: Lease):
    with pytest.raises(Conflict, match="it goes on by itself"):
        store.request_resume(submitted(store).id, "ada")
    leaving = running(store, lease)
    store.request_cancel(leaving.id, "ada")
    with pytest.raises(Conflict, match="is CANCELLING: it can be resumed once it has ended"):
        store.request_resume(leaving.id, "ada")
    with pytest.raises(Conflict, match="nothing to resume") as refused:
        store.request_resume(ended(store, lease, JobState.SUCCEEDED).id, "ada")
    assert refused.value.state == "SUCCEEDED"


def told(store: Store) -> list[str]:
    return [event.data["new"] for event in store.events() if event.kind == "job"]
