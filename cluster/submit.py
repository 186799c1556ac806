"""Whole jobs on a remote cluster, through Ray's Jobs API: submit, follow, stop.

What the API leaves to its callers, and is seen to here:
- its client waits for ever: every request here is bounded;
- it refuses a submission id that it knows, also when the reply to the first attempt was lost: then the job is adopted;
- RAY_ADDRESS silently overrules the address that the client is given: not here;
- to stop is to ask: `stop` waits for the end, and the driver gets time to write a checkpoint before it is killed;
- log streams can end before the job does: `logs` asks for the state, and reconnects.

Ray that cannot be reached says nothing about the job: that is always ClusterUnreachable, never a failed job.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.connect import EXCLUDES, find_token, token_refused
from jobs.errors import ClusterUnreachable, JobFailed, SpecError

logger = logging.getLogger(__name__)

STOP_GRACE_S = 30
"""Between SIGTERM and SIGKILL for the entrypoint; Ray's own default of 3 s is too short to write a checkpoint."""

_CONNECT_TIMEOUT_S = 5.0
_POLL_S = 0.5
_QUIET_S = 5.0
"""A log stream that says nothing for so long is checked against the job's state."""
_GATEWAY_ERRORS = tuple(f"status code {code}" for code in (502, 503, 504))
_REDIRECTS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class JobState:
    """What Ray says of a job."""

    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    message: str
    """Ray's reason in words; for FAILED it may be the cluster's fault as well as the job's."""
    exit_code: int | None = None
    """Of the entrypoint, once it has ended by itself."""
    ray_job: str | None = None
    """Ray's id of the driver that the entrypoint is, once that has connected: what it holds is listed under it."""

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`, such as `http://head:8265`.

    Nothing is sent before the first call. The token is looked for by `cluster.connect.find_token`. Every method
    raises ClusterUnreachable when there is no answer within `timeout_s`, or the token is not accepted.

    Raises:
        SpecError: the address is not that of a job server.
    """

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        if not address.startswith(("http://", "https://")):
            raise SpecError.at(
                "--ray",
                "no address of a Ray job server",
                address,
                "a URL such as http://head:8265",
                nearest=f"http://{address}" if "://" not in address else None,
            )
        self._address = address.rstrip("/")
        self._timeout_s = timeout_s
        self._opened: _BoundedClient | None = None

    def submit(
        self,
        entrypoint: str,
        submission_id: str,
        working_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Submits a shell command as a job and returns its id; a job that has this id already is adopted.

        Args:
            submission_id: chosen by the caller, so that a submission can be repeated after a lost reply.
            working_dir: folder that travels and in which the command starts; see cluster.connect.EXCLUDES.
            env: environment of the command.

        Raises:
            SpecError: the working directory is missing, or too large for Ray (its message says the limit).
            JobFailed: Ray refused the job.
        """
        runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)} | dict(env or {})}
        if working_dir is not None:
            runtime_env |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
        with self._client():
            pass  # A cluster that cannot be reached at all is not asked a second time below.
        try:
            with self._client() as client, _working_dir_errors(working_dir):
                return client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=dict(metadata or {}),
                )
        except (ClusterUnreachable, JobFailed) as error:
            # Refused as known, or the reply was lost: what counts is whether the job is there.
            try:
                self.status(submission_id)
            except (SpecError, ClusterUnreachable):
                raise error from None
            logger.info("adopted job %s, which was submitted before", submission_id)
            return submission_id

    def status(self, submission_id: str) -> JobState:
        """The job's state. Raises SpecError for an id that the cluster does not know."""
        with self._client(submission_id) as client:
            details = client.get_job_info(submission_id)
        return _state(details)

    def states(self) -> dict[str, JobState]:
        """All jobs that were submitted to the cluster and that it still knows, by their ids: one request."""
        with self._client() as client:
            listed = client.list_jobs()
        return {details.submission_id: _state(details) for details in listed if details.submission_id}

    def logs(self, submission_id: str) -> Iterator[str]:
        """The lines that the job has written and will write, until it has ended; without line ends.

        Raises SpecError for an unknown id.
        """
        line, delivered = "", 0
        ended = False
        while not ended:
            state = self.status(submission_id)
            ended = state.ended
            if ended:
                # One more look from the start: the stream may have ended before the last lines were written.
                with self._client(submission_id) as client:
                    chunks: Iterator[str] = iter([client.get_job_logs(submission_id)])
            else:
                chunks = self._stream(submission_id)
            position = 0
            for chunk in chunks:
                # Every stream begins with the first line again.
                position += len(chunk)
                if (new := position - delivered) <= 0:
                    continue
                delivered = position
                *lines, line = (line + chunk[-new:]).split("\n")
                yield from lines
            if not ended:
                time.sleep(_POLL_S)
        if line:
            yield line

    def log(self, submission_id: str) -> list[str]:
        """The lines that the job has written so far. Raises SpecError for an unknown id."""
        with self._client(submission_id) as client:
            return client.get_job_logs(submission_id).splitlines()

    def ask_stop(self, submission_id: str) -> None:
        """Asks the job to end, and does not wait for it. Raises SpecError for an unknown id."""
        with self._client(submission_id) as client:
            client.stop_job(submission_id)

    def stop(self, submission_id: str, timeout_s: float = 60.0) -> JobState:
        """Ends the job and waits until it has ended; how it ended is returned.

        Raises SpecError for an unknown id, and JobFailed if it still runs after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self.ask_stop(submission_id)
        while not (state := self.status(submission_id)).ended:
            if time.monotonic() >= deadline:
                raise JobFailed(f"job {submission_id} is still {state.status} {timeout_s:g} s after it was stopped")
            time.sleep(_POLL_S)
        return state

    @contextmanager
    def _client(self, submission_id: str | None = None) -> "Iterator[_BoundedClient]":
        """The client, with its errors translated into ours."""
        try:
            if self._opened is None:
                self._opened = _open(self._address, self._timeout_s)
            yield self._opened
        except AuthenticationError as error:
            raise token_refused(self._address) from error
        except (requests.RequestException, OSError) as error:
            raise ClusterUnreachable(
                f"no Ray job server answers at {self._address} within {self._timeout_s:g} s ({error}); "
                "is it the address of the cluster's dashboard?"
            ) from error
        except RuntimeError as error:
            if submission_id is not None and "status code 404" in str(error):
                raise SpecError.at(
                    "JOB", f"the Ray cluster at {self._address} knows no such job", submission_id
                ) from error
            if any(code in str(error) for code in _GATEWAY_ERRORS):
                raise ClusterUnreachable(f"the Ray cluster behind {self._address} does not answer: {error}") from error
            raise JobFailed(f"Ray refused: {error}") from error

    def _stream(self, submission_id: str) -> Iterator[str]:
        """Chunks of the log from its beginning, for as long as one stream lasts."""
        with self._client(submission_id) as client:
            chunks = client.tail_job_logs(submission_id)
        with closing(asyncio.new_event_loop()) as loop:
            arriving: asyncio.Task[str | None] | None = None
            try:
                while True:
                    arriving = arriving or loop.create_task(_next(chunks))
                    loop.run_until_complete(asyncio.wait({arriving}, timeout=_QUIET_S))
                    if not arriving.done():
                        if self.status(submission_id).ended:
                            return
                        continue
                    try:
                        chunk = arriving.result()
                    except (RuntimeError, OSError, aiohttp.ClientError) as error:
                        logger.info("log stream of job %s broke off: %s", submission_id, error)
                        return
                    finally:
                        arriving = None
                    if chunk is None:
                        return
                    yield chunk
            finally:
                if arriving is not None:
                    arriving.cancel()
                    loop.run_until_complete(asyncio.wait({arriving}, timeout=_QUIET_S))
                loop.run_until_complete(loop.shutdown_asyncgens())


class _BoundedClient(JobSubmissionClient):
    """Ray's client, with an end to every wait."""

    def __init__(self, address: str, timeout_s: float, headers: dict[str, str]) -> None:
        self._timeout = (min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s)
        super().__init__(address, headers=headers)

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=self._timeout, **kwargs)


def _open(address: str, timeout_s: float) -> _BoundedClient:
    if not os.environ.get("THRESHER_DEBUG"):
        for name in ("job.sdk", "dashboard_sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    token = find_token()
    redirects = {name: os.environ.pop(name) for name in _REDIRECTS if name in os.environ}
    try:
        return _BoundedClient(address, timeout_s, {"Authorization": f"Bearer {token}"} if token else {})
    finally:
        os.environ.update(redirects)


def _state(details: JobDetails) -> JobState:
    return JobState(details.status.value, details.message or "", details.driver_exit_code, details.job_id or None)


async def _next(chunks: AsyncIterator[str]) -> str | None:
    return await anext(chunks, None)


@contextmanager
def _working_dir_errors(working_dir: Path | None) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise SpecError.at("code.working_dir", str(error), str(working_dir)) from error
