"""The service from Python.

with Client("http://127.0.0.1:8421", token) as client:
    job = client.submit(JobSpec.load("examples/digits.yaml"))
    for text in client.logs(job.id, follow=True):
        print(text, end="")
    print(client.describe(job.id).state)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from jobs.spec import JobSpec
from orchestrator.client import calls, shapes
from orchestrator.client.errors import error_of, no_answer, unreachable
from orchestrator.client.following import BROKEN_STREAMS, PAUSE_S, LogPosition
from orchestrator.client.retry import RETRIED_STATUSES, Retries
from orchestrator.client.sending import Submission, connection, end_of_stream, event_of, key_of, submission
from orchestrator.client.sse import Parser
from orchestrator.client.whole_file import WholeFile, target_of

T = TypeVar("T")


class Client:
    """A connection to the service; close it, or use it as a context manager.

    Args:
        url: of the service; default: THRESHER_URL.
        token: default: THRESHER_TOKEN.
        retries: how often and how long a request that may be repeated is repeated.

    Every method raises ServiceRefused (a SpecError) for what the service refuses, ClusterUnreachable if it does not
    answer, and ServiceBroken if it fails.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        settings = connection(url, token, timeout_s)
        self.url = settings["base_url"]
        self._http = httpx.Client(transport=transport, **settings)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Jobs

    def submit(self, spec: JobSpec | dict[str, Any], *, key: str | None = None) -> shapes.Job:
        """Queues a job; the user's modules travel with it. The same key gives the same job, however often it is sent.

        Raises SpecError with the problems that `thresher plan` would name.
        """
        prepared: Submission = submission(spec)
        if prepared.archive is not None:
            self._do(calls.upload_code(prepared.archive, prepared.sha256, prepared.project))
        return self._do(calls.submit(prepared.document, key_of(key), prepared.sha256 or None))

    def jobs(
        self,
        *,
        project: str | None = None,
        states: tuple[str, ...] = (),
        name: str | None = None,
        since_ms: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> shapes.JobPage:
        """A page of jobs, newest first."""
        return self._do(calls.jobs(project, states, name, since_ms, limit, cursor))

    def all_jobs(self, **filters: Any) -> Iterator[shapes.Job]:
        """Every job that the filters of `jobs` let through, page by page."""
        cursor = None
        while True:
            page = self.jobs(**filters, cursor=cursor)
            yield from page.jobs
            cursor = page.next
            if cursor is None:
                return

    def describe(self, job_id: str) -> shapes.JobDetail:
        return self._do(calls.job(job_id))

    def cancel(self, job_id: str) -> shapes.Job:
        """Asks for a job's end; a running one writes a checkpoint first. The state says how far that is."""
        return self._do(calls.cancel(job_id))

    def resume(self, job_id: str, *, key: str | None = None) -> shapes.Job:
        """A new job that goes on where one that failed or was cancelled ended; one, however often the key is sent."""
        return self._do(calls.resume(job_id, key_of(key)))

    def wait(self, job_id: str, *, timeout_s: float) -> shapes.JobDetail:
        """The job once it has ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not (job := self.describe(job_id)).ended:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(PAUSE_S)
        return job

    def logs(
        self, job_id: str, *, follow: bool = False, on_job: Callable[[shapes.Job], None] = lambda job: None
    ) -> Iterator[str]:
        """The text that the job's attempts have written, and, following, will write until it has ended.

        A stream that breaks off is taken up again where it broke off.

        Args:
            on_job: is told what is known of the job, each time that it was asked for.
        """
        position, broken = LogPosition(), 0
        path = f"{calls.API}/jobs/{quote(job_id, safe='')}/logs"
        while True:
            problem: httpx.TransportError | None = None
            before = position.offset
            try:
                with self._stream(path, params=position.params(follow)) as response:
                    for chunk in response.iter_bytes():
                        yield position.took(chunk)
            except httpx.TransportError as error:
                problem = error
            broken = broken + 1 if problem is not None and position.offset == before else 0
            if problem is not None and broken >= BROKEN_STREAMS:
                raise unreachable(self.url, problem, broken) from problem
            job = self.describe(job_id)  # notices a service that is gone for good
            on_job(job)
            if not position.go_on(job, clean=problem is None, follow=follow):
                return
            if problem is not None or (follow and not position.last_look and position.offset):
                time.sleep(PAUSE_S)

    def events(self, job_id: str | None = None, *, after: int = 0, limit: int = 100) -> shapes.EventPage:
        """What was committed, in order; of one job, or of all that the token may see."""
        return self._do(calls.events(job_id, after, limit))

    def watch(self, job_id: str | None = None, *, after: int = 0) -> Iterator[shapes.Event]:
        """Events as they happen; of one job until it has ended. Goes on after a broken stream, and misses none."""
        call = calls.events(job_id, after, 1)
        parser = Parser(str(after))
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": parser.last_id}
            try:
                with self._stream(call.path, headers=headers) as response:
                    for line in response.iter_lines():
                        message = parser.feed(line)
                        if message is not None and end_of_stream(message):
                            return
                        if message is not None:
                            yield event_of(message)
            except httpx.TransportError:
                self.me()  # notices a service that is gone for good
            parser = Parser(parser.last_id)
            time.sleep(PAUSE_S)

    def metrics(self, job_id: str, *, after: int = 0, limit: int = 1000) -> shapes.MetricPage:
        return self._do(calls.metrics(job_id, after, limit))

    def report(self, job_id: str) -> dict[str, Any]:
        return self._do(calls.report(job_id))

    def artifacts(self, job_id: str) -> tuple[shapes.ArtifactCard, ...]:
        return self._do(calls.artifacts(job_id)).artifacts

    def fetch_artifact(self, job_id: str, artifact: str, folder: Path) -> Path:
        """Downloads an artifact's files and checks their digests. Raises ArtifactError for one that differs."""
        found = next((card for card in self.artifacts(job_id) if card.name == artifact), None)
        for file in found.files if found else ():
            self._download(calls.artifact_file(job_id, artifact, file.path), target_of(folder, file.path), file.sha256)
        if found is None:
            self._do(calls.Call("GET", calls.artifact_file(job_id, artifact, "artifact.json"), dict))
        return folder

    # Models

    def models(self, *, project: str | None = None, name: str | None = None) -> tuple[shapes.ModelVersion, ...]:
        return self._do(calls.models(project, name)).models

    def model(self, name: str, reference: str = "latest", *, project: str = "default") -> shapes.ModelVersion:
        """By version, alias, or `latest`."""
        return self._do(calls.model(project, name, reference))

    def fetch_model(
        self, name: str, reference: str = "latest", *, project: str = "default", folder: Path
    ) -> shapes.ModelVersion:
        """Downloads a registered model: an artifact folder for `predict` and `verify`. Digests are checked."""
        model = self.model(name, reference, project=project)
        for file in model.files:
            path = calls.model_file(project, name, model.version, file.path)
            self._download(path, target_of(folder, file.path), file.sha256)
        return model

    def set_alias(self, name: str, alias: str, version: int, *, project: str = "default") -> shapes.ModelVersion:
        return self._do(calls.set_alias(project, name, alias, version))

    def delete_alias(self, name: str, alias: str, *, project: str = "default") -> None:
        self._do(calls.delete_alias(project, name, alias))

    # Projects, tokens, cluster

    def projects(self) -> tuple[shapes.Project, ...]:
        return self._do(calls.projects()).projects

    def project(self, name: str) -> shapes.Project:
        return self._do(calls.project(name))

    def put_project(self, name: str, settings: shapes.ProjectSettings) -> shapes.Project:
        return self._do(calls.put_project(name, settings))

    def delete_project(self, name: str) -> None:
        self._do(calls.delete_project(name))

    def tokens(self, *, project: str | None = None) -> tuple[shapes.Token, ...]:
        return self._do(calls.tokens(project)).tokens

    def create_token(
        self, name: str, role: shapes.Role, *, project: str | None = None, expires_s: int | None = None
    ) -> shapes.NewToken:
        """A new token; its secret is in this answer, and nowhere else."""
        return self._do(calls.create_token(name, role, project, expires_s))

    def revoke_token(self, token_id: str) -> None:
        self._do(calls.revoke_token(token_id))

    def me(self) -> shapes.Token:
        return self._do(calls.me())

    def cluster(self) -> shapes.ClusterState:
        return self._do(calls.cluster())

    # How it is sent

    def _do(self, call: calls.Call[T]) -> T:
        response = self._send(call)
        try:
            return call.parse(response.json() if response.content else None)
        except ValueError as error:
            raise no_answer(self.url, error) from error

    def _send(self, call: calls.Call[Any]) -> httpx.Response:
        failures, spent_s = 0, 0.0
        while True:
            response: httpx.Response | None = None
            problem: httpx.TransportError | None = None
            try:
                response = self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers
                )
            except httpx.TransportError as error:
                problem = error
            if response is not None and response.status_code < 300:
                return response
            failures += 1
            again = call.repeatable or isinstance(problem, httpx.ConnectError)
            may_retry = problem is not None or (response is not None and response.status_code in RETRIED_STATUSES)
            pause = self._retries.pause_s(failures, spent_s, response) if again and may_retry else None
            if pause is None:
                if response is not None:
                    raise error_of(response, self.url)
                assert problem is not None
                raise unreachable(self.url, problem, failures) from problem
            spent_s += pause
            time.sleep(pause)

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """An answer that is read as it arrives. Raises httpx.TransportError if it breaks off."""
        with self._http.stream("GET", path, **options) as response:
            if response.status_code >= 300:
                response.read()
                if response.status_code in RETRIED_STATUSES:
                    raise httpx.TransportError(f"HTTP {response.status_code}")
                raise error_of(response, self.url)
            yield response

    def _download(self, path: str, target: Path, sha256: str | None) -> None:
        failures, spent_s = 0, 0.0
        with WholeFile(target, sha256) as file:
            while True:
                try:
                    with self._stream(path, headers=file.headers()) as response:
                        file.begin(response)
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                        return
                except httpx.TransportError as error:
                    failures += 1
                    pause = self._retries.pause_s(failures, spent_s)
                    if pause is None:
                        raise unreachable(self.url, error, failures) from error
                    spent_s += pause
                    time.sleep(pause)
