"""Jobs over HTTP: submitted once, listed in pages, described, cancelled, resumed; and what a run has made."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import delete

from jobs.errors import SpecError
from jobs.spec import JobSpec
from orchestrator.client import AsyncClient, ServiceRefused
from orchestrator.client.retry import Retries
from orchestrator.scheduling import Project, Quota
from orchestrator.service.ranges import parse_range
from orchestrator.store import JobState
from orchestrator.store.tables import jobs
from tests.orchestrator.service.conftest import DIGITS, World

BAD: list[dict[str, Any]] = [
    DIGITS | {"trian": {}},
    DIGITS | {"train": {"epochs": -1}},
    DIGITS | {"model": {"name": "mpl"}},
    DIGITS | {"train": {"batch_size": 1 << 20}},
    DIGITS | {"metric": "rmse"},
    DIGITS | {"layout": {"data": 3}},
    DIGITS | {"search": {"trials": 2, "space": {"train.lr": {"uniform": [0, 1]}}}},
]


class TestSubmission:
    @pytest.mark.parametrize("document", BAD, ids=lambda document: next(iter(document.keys() - DIGITS.keys()), "value"))
    def test_refuses_what_plan_refuses_in_the_same_words(self, document: dict[str, Any], world: World) -> None:
        from orchestrator.planning.plan import plan_job
        from orchestrator.runs import Storage

        with pytest.raises(SpecError) as refused:
            plan_job(JobSpec.parse(document), Storage(world.settings.runs))
        answer = world.admin("POST", "/jobs", json=document)
        assert answer.status_code == 422
        assert answer.json()["message"] == str(refused.value)
        assert [each["path"] for each in answer.json()["problems"]] == [each.path for each in refused.value.problems]

    def test_yaml_and_json_give_the_same_job(self, world: World) -> None:
        text = yaml.safe_dump(DIGITS)
        answer = world.admin("POST", "/jobs", content=text, headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 201
        one, other = (world.store.job(each) for each in (answer.json()["id"], world.submit()))
        assert one is not None
        assert other is not None
        assert (one.spec, one.spec_hash, one.demand) == (other.spec, other.spec_hash, other.demand)
        assert world.woken

    def test_a_key_gives_one_job(self, world: World) -> None:
        def send(document: dict[str, Any]) -> Any:
            return world.admin("POST", "/jobs", json=document, headers={"Idempotency-Key": "k1"})

        first, again, other = send(DIGITS), send(DIGITS), send(DIGITS | {"priority": 3})
        assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
        assert first.json()["id"] == again.json()["id"]
        assert len(world.admin("GET", "/jobs").json()["jobs"]) == 1

    def test_infeasible_ones_are_refused_with_the_numbers(self, world: World) -> None:
        resources = {"workers": 2, "cpus_per_worker": 5}
        answer = world.admin("POST", "/jobs", json=DIGITS | {"resources": resources})
        assert answer.status_code == 422
        assert "2 × 5 CPU can never start here: the idle cluster has room for 0" in answer.json()["message"]
        world.store.put_project(Project("small", Quota({"CPU": 1000}, {"CPU": 0})))
        asked = DIGITS | {"project": "small", "resources": {"workers": 2}}
        assert "project small may use at most 1 CPU" in world.admin("POST", "/jobs", json=asked).json()["message"]

    def test_a_cluster_that_is_away_refuses_nothing(self, world: World) -> None:
        world.cluster.away = True
        world.submit(resources={"workers": 64})
        assert world.admin("GET", "/cluster").json()["reachable"] is False


class TestJobs:
    def test_pages_show_every_job_once(self, world: World) -> None:
        jobs = [world.submit(name=f"job-{number % 2}") for number in range(7)]
        seen, cursor = [], None
        while True:
            params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = world.admin("GET", "/jobs", params=params).json()
            seen += [each["id"] for each in page["jobs"]]
            if (cursor := page["next"]) is None:
                break
        assert sorted(seen) == sorted(jobs)
        named = world.admin("GET", "/jobs", params={"name": "job-1"}).json()["jobs"]
        assert len(named) == 3
        assert world.admin("GET", "/jobs", params={"state": ["RUNNING", "FAILED"]}).json()["jobs"] == []
        assert world.admin("GET", "/jobs", params={"state": "BUSY"}).status_code == 422

    def test_cancel_and_resume(self, world: World) -> None:
        job = world.submit()
        early = world.admin("POST", f"/jobs/{job}/resume")
        assert (early.status_code, early.json()["state"]) == (409, "QUEUED")
        assert world.admin("POST", f"/jobs/{job}/cancel").json()["state"] == "CANCELLED"
        again = world.admin("POST", f"/jobs/{job}/cancel")
        assert (again.status_code, again.json()["state"]) == (409, "CANCELLED")
        resumed = world.admin("POST", f"/jobs/{job}/resume").json()
        assert (resumed["resumes"], resumed["run_dir"]) == (job, str(world.settings.runs / job))
        assert world.admin("GET", f"/jobs/{resumed['id']}").json()["spec"] == world.store.job(job).spec  # type: ignore[union-attr]
        assert world.admin("POST", "/jobs/none/cancel").status_code == 404

    def test_a_repeated_resume_is_one_job(self, world: World) -> None:
        job, other = world.submit(), world.submit()
        for each in (job, other):
            world.admin("POST", f"/jobs/{each}/cancel")
        key = {"Idempotency-Key": "once"}
        first = world.admin("POST", f"/jobs/{job}/resume", headers=key)
        woken = len(world.woken)
        again = world.admin("POST", f"/jobs/{job}/resume", headers=key)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json()
        assert len(world.woken) == woken
        assert world.admin("POST", f"/jobs/{job}/resume").status_code == 409  # without a key it is another one
        world.admin("POST", f"/jobs/{first.json()['id']}/cancel")
        assert world.admin("POST", f"/jobs/{job}/resume", headers=key).json()["id"] == first.json()["id"]
        assert world.admin("POST", f"/jobs/{other}/resume", headers=key).status_code == 409
        assert world.admin("POST", f"/jobs/{job}/resume", headers={"Idempotency-Key": "a b"}).status_code == 422


def run_one(world: World, job: str) -> Any:
    """The job gets an attempt that lives."""
    lease = world.store.acquire_lease("test", 60)
    assert lease is not None
    attempt = world.store.plan_attempt(lease, job, ["a"], str(world.settings.runs / job), "run")
    world.store.mark_submitted(lease, attempt.submission_id)
    world.store.mark_alive(lease, attempt.submission_id)
    return lease, attempt


class TestResults:
    def test_logs_by_position(self, world: World) -> None:
        job = world.submit()
        _, attempt = run_one(world, job)
        world.logs.texts[attempt.submission_id] = "zwölf\nlines".encode()
        path = f"/jobs/{job}/logs"
        assert world.admin("GET", path).text == "zwölf\nlines"
        assert world.admin("GET", path, params={"offset": 7}).text == "lines"
        assert world.admin("GET", path, params={"attempt": 2}).text == ""
        world.logs.away = True
        assert world.admin("GET", path).status_code == 503

    @pytest.mark.parametrize("stream", ["logs?follow=true", "events"])
    def test_who_follows_a_job_that_is_removed_is_told(self, stream: str, world: World) -> None:
        job = world.submit()
        remove = threading.Timer(0.5, self.remove, (world, job))
        remove.start()
        answer = world.admin("GET", f"/jobs/{job}/{stream}", headers={"Accept": "text/event-stream"})
        remove.join()
        assert answer.status_code == 200  # it had begun
        assert "event: end" not in answer.text
        assert world.admin("GET", f"/jobs/{job}/{stream}").status_code == 404

    @staticmethod
    def remove(world: World, job: str) -> None:
        world.store.database.write(lambda t: t.connection.execute(delete(jobs).where(jobs.c.id == job)))

    def test_metrics_go_on_from_a_position(self, world: World) -> None:
        job = world.submit()
        path = f"/jobs/{job}/metrics"
        assert world.admin("GET", path).json() == {"metrics": [], "next": 0}
        file = world.run_dir(job) / "metrics.jsonl"
        file.write_text('{"step": 1}\n{"step": 2}\nbroken\n{"step": 3}\n{"st')
        first = world.admin("GET", path, params={"limit": 2}).json()
        assert [each["step"] for each in first["metrics"]] == [1, 2]
        rest = world.admin("GET", path, params={"after": first["next"]}).json()
        assert [each["step"] for each in rest["metrics"]] == [3]
        with file.open("a") as more:
            more.write('ep": 4}\n')
        last = world.admin("GET", path, params={"after": rest["next"]}).json()
        assert [each["step"] for each in last["metrics"]] == [4]

    def test_ranges(self, world: World) -> None:
        job = world.submit()
        folder = world.run_dir(job) / "artifacts" / "dense"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes(range(100)))
        (folder / "artifact.json").write_text(
            json.dumps({"name": "dense", "files": [{"path": "model.onnx", "bytes": 100, "sha256": "0"}]})
        )
        path = f"/jobs/{job}/artifacts/dense/model.onnx"

        def get(**headers: str) -> Any:
            return world.admin("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

        whole = get()
        assert (whole.status_code, whole.content) == (200, bytes(range(100)))
        part = get(Range="bytes=10-19")
        assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
        assert part.headers["content-range"] == "bytes 10-19/100"
        assert get(Range="bytes=-5").content == bytes(range(95, 100))
        assert get(Range="bytes=90-").content == bytes(range(90, 100))
        assert get(Range="bytes=100-").status_code == 416
        assert get(Range="bytes=0-1,5-6").status_code == 200
        assert get(Range="bytes=10-19", If_Range='"another"').status_code == 200
        assert get(If_None_Match=whole.headers["etag"]).status_code == 304
        listed = world.admin("GET", f"/jobs/{job}/artifacts").json()["artifacts"]
        assert [each["path"] for each in listed[0]["files"]] == ["model.onnx", "artifact.json"]

    @pytest.mark.parametrize("header", [None, "", "bytes=-", "lines=1-2", "bytes=5-2", "bytes=a-b"])
    def test_what_is_no_range_is_the_whole(self, header: str | None) -> None:
        assert parse_range(header, 10) is None


class TestAsyncClient:
    def test_against_the_application(self, world: World) -> None:
        async def walk() -> None:
            transport = httpx.ASGITransport(app=world.http.app)
            retries = Retries(tries=2, first_s=0.01)
            async with AsyncClient(
                "http://127.0.0.1", world.admin.secret, transport=transport, retries=retries
            ) as client:
                job = await client.submit(DIGITS, key="one")
                assert (await client.submit(DIGITS, key="one")).id == job.id
                assert [each.id async for each in client.all_jobs(limit=1)] == [job.id]
                with pytest.raises(ServiceRefused) as refused:
                    await client.resume(job.id)
                assert (refused.value.status, refused.value.state) == (409, "QUEUED")
                assert (await client.cancel(job.id)).ended
                assert [event.kind async for event in client.watch(job.id)] == ["job", "job"]
                assert [text async for text in client.logs(job.id, follow=True)] == []
                with pytest.raises(ServiceRefused, match="no such job"):
                    await client.describe("none")

        asyncio.run(walk())

    def test_a_resume_whose_answer_is_lost_is_asked_for_again(self, world: World) -> None:
        class Losing(httpx.AsyncBaseTransport):
            """The service did it, and nobody heard."""

            def __init__(self) -> None:
                self.real = httpx.ASGITransport(app=world.http.app)
                self.lost = 0

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                answer = await self.real.handle_async_request(request)
                if request.url.path.endswith("/resume") and self.lost < 2:
                    self.lost += 1
                    raise httpx.ReadError("cut off")
                return answer

        async def walk() -> None:
            transport, retries = Losing(), Retries(tries=4, first_s=0.01)
            async with AsyncClient(
                "http://127.0.0.1", world.admin.secret, transport=transport, retries=retries
            ) as client:
                job = await client.submit(DIGITS)
                await client.cancel(job.id)
                resumed = await client.resume(job.id)
                assert (resumed.resumes, transport.lost) == (job.id, 2)
                assert [each.id async for each in client.all_jobs()] == [resumed.id, job.id]

        asyncio.run(walk())

    def test_a_log_is_followed_across_attempts(self, world: World) -> None:
        job = world.submit()
        lease, first = run_one(world, job)
        world.logs.texts[first.submission_id] = b"first\n"

        async def follow() -> str:
            transport = httpx.ASGITransport(app=world.http.app)
            async with AsyncClient("http://127.0.0.1", world.admin.secret, transport=transport) as client:
                reading = asyncio.ensure_future(anext(client.logs(job)))
                assert await reading == "first\n"
                world.store.end_attempt(lease, first.submission_id, "failed", "node")
                world.store.requeue_job(lease, job, JobState.RECOVERING)
                second = world.store.plan_attempt(lease, job, ["a"], "x", "resume")
                world.logs.texts[second.submission_id] = b"second\n"
                world.store.end_attempt(lease, second.submission_id, "failed", "code")
                world.store.finish_job(lease, job, JobState.FAILED, "code")
                return "".join([text async for text in client.logs(job, follow=True)])

        assert asyncio.run(follow()) == "first\nsecond\n"


def test_a_project_that_nobody_made(world: World) -> None:
    answer = world.admin("POST", "/jobs", json=DIGITS | {"project": "nobody"}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, world.admin("GET", "/jobs").json()["jobs"]) == (404, [])


@pytest.mark.parametrize(
    ("age_s", "leads"), [(None, 0), (0.5, 1), (60.0, 0)], ids=["another leads", "leads", "its time is up"]
)
def test_metrics_say_who_leads(age_s: float | None, leads: int, world: World) -> None:
    world.http.app.state.service.lease_age_s = lambda: age_s  # type: ignore[attr-defined]
    lines = world.admin("GET", "//metrics").text.splitlines()
    assert f"thresher_leads {leads:.1f}" in lines
    assert f"thresher_lease_age_seconds {'NaN' if age_s is None else age_s}" in lines
