"""Projects, tokens, model aliases."""

import pytest
import sqlalchemy

from jobs.errors import SpecError
from orchestrator.scheduling import Project, Quota
from orchestrator.store import Conflict, JobState, Lease, NewModel, NotFound, Store

from .small_jobs import ended, submitted


def test_projects_come_back_as_they_were_put(store: Store):
    assert [project.name for project in store.projects()] == ["default"]
    quota = Quota({"CPU": 4000}, {"CPU": 1000}, {})
    project = Project("vision", quota, pool="gpu", weight=3, preempt_within="never", reclaim="lower_priority")
    store.put_project(project)
    assert store.project("vision") == project
    store.put_project(Project("vision"))
    assert store.project("vision") == Project("vision")
    assert store.project("other") is None


def test_a_project_with_live_jobs_stays(store: Store):
    store.put_project(Project("vision"))
    token, secret = store.create_token("vision", "viewer", "ci")
    job = submitted(store, project="vision")
    with pytest.raises(Conflict, match="1 jobs that have not ended"):
        store.delete_project("vision")
    store.request_cancel(job.id, "ada")
    store.delete_project("vision")
    assert store.project("vision") is None
    assert store.token_by_secret(secret) is None
    assert store.tokens("vision")[0].revoked_ms is not None
    with pytest.raises(NotFound):
        store.delete_project("vision")
    assert store.job(job.id) is not None
    assert token.project == "vision"


def test_a_secret_opens_until_it_is_revoked_or_expires(store: Store):
    token, secret = store.create_token(None, "admin", "ops")
    assert store.token_by_secret(secret) == token
    for wrong in ("", "thr", "thr__", secret[:-1], secret + "x", f"thr_{token.id}_", secret.upper(), "x" * 10_000):
        assert store.token_by_secret(wrong) is None
    revoked = store.revoke_token(token.id)
    assert revoked.revoked_ms is not None
    assert store.revoke_token(token.id) == revoked
    assert store.token_by_secret(secret) is None
    _, late = store.create_token("default", "viewer", "brief", store.now_ms())
    assert store.token_by_secret(late) is None
    _, good = store.create_token("default", "viewer", "brief", store.now_ms() + 60_000)
    assert store.token_by_secret(good) is not None
    with pytest.raises(NotFound):
        store.create_token("nobodys", "viewer", "x")
    with pytest.raises(NotFound):
        store.revoke_token("other")


def test_the_first_token_is_made_once(store: Store):
    first = store.create_first_token()
    assert first is not None
    assert (first[0].role, first[0].project) == ("admin", None)
    assert store.create_first_token() is None


def test_aliases_name_versions(store: Store, lease: Lease):
    for _ in range(2):
        job = ended(store, lease, JobState.SUCCEEDED)
        store.record_models(lease, job.id, [NewModel("digits", "dense", "/runs/d", "5bec")])
    assert store.set_alias("default", "digits", "production", 1).aliases == ("production",)
    assert store.set_alias("default", "digits", "production", 2).version == 2
    store.set_alias("default", "digits", "best", 2)
    found = store.model("default", "digits", "production")
    assert found is not None
    assert (found.version, found.aliases) == (2, ("best", "production"))
    assert found == store.model("default", "digits", 2) == store.model("default", "digits", "2")
    assert [model.aliases for model in store.models("default", "digits")] == [("best", "production"), ()]
    store.delete_alias("default", "digits", "production")
    assert store.model("default", "digits", "production") is None
    assert store.model("default", "digits", 3) is None
    with pytest.raises(NotFound, match="version 3"):
        store.set_alias("default", "digits", "production", 3)
    for bad in ("1", "", "a b", "../x"):
        with pytest.raises(SpecError, match="alias"):
            store.set_alias("default", "digits", bad, 1)


def test_no_secret_is_stored(store: Store, url: str):
    _, secret = store.create_token(None, "admin", "ops")
    engine, tables = sqlalchemy.create_engine(url), sqlalchemy.MetaData()
    with engine.connect() as connection:
        tables.reflect(connection)
        dump = "\n".join(str(row) for table in tables.sorted_tables for row in connection.execute(table.select()))
    engine.dispose()
    assert "ops" in dump
    assert secret not in dump
    assert secret.split("_", 2)[2] not in dump
