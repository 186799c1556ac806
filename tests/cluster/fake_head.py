"""A Ray job server that does as it is told: enough of the Jobs API for the client, over real HTTP."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs


@dataclass
class FakeJob:
    entrypoint: str
    runtime_env: dict[str, Any]
    status: str = "RUNNING"
    log: str = ""
    stops: int = 0
    asked: dict[str, Any] = field(default_factory=dict)
    """The body of the submission."""
    ray_job: str | None = None


class FakeHead:
    """A context manager; the verbs decide what the next requests meet."""

    def __init__(self, token: str | None = None) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.token = token
        self.num_requests = 0
        self.session = 1
        self.rows: dict[str, list[dict[str, Any]]] = {}
        """What the state API lists: nodes, placement_groups, actors, tasks."""
        self._silent = False
        self._drop_next_submit_reply = False
        self._gateway_down = False
        self._released = threading.Event()
        head = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                head._serve(self)

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def go_silent(self) -> None:
        """Accepts requests and never answers."""
        self._silent = True

    def lose_the_reply_to_the_next_submit(self) -> None:
        """The job is taken, but the client never hears of it."""
        self._drop_next_submit_reply = True

    def hide_behind_a_gateway(self) -> None:
        """Ray is down, and a proxy says so."""
        self._gateway_down = True

    def end(self, submission_id: str, status: str, log: str = "") -> None:
        job = self.jobs[submission_id]
        job.log += log
        job.status = status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        self.num_requests += 1
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self._silent:
            self._released.wait(30.0)
            return
        if self._gateway_down:
            self._reply(request, 503, "no healthy upstream")
            return
        shown = request.headers.get("Authorization")
        if self.token is not None and shown != f"Bearer {self.token}":
            self._reply(request, 401 if shown is None else 403, "Forbidden")
            return
        code, answer = self._answer(request.command, request.path.rstrip("/"), body)
        if request.path == "/api/jobs/" and self._drop_next_submit_reply:
            self._drop_next_submit_reply = False
            request.close_connection = True
            return
        self._reply(request, code, answer)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/version":
            session = f"session_{self.session}"
            return 200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": session}
        if path.startswith("/api/v0/"):
            return 200, {"data": {"result": {"result": self._listed(path.removeprefix("/api/v0/"))}}}
        if (method, path) == ("GET", "/api/jobs"):
            return 200, [self._described(submission_id) for submission_id in self.jobs]
        if (method, path) == ("POST", "/api/jobs"):
            asked = json.loads(body)
            submission_id = asked["submission_id"]
            if submission_id in self.jobs:
                return 500, f"Job with submission_id {submission_id} already exists."
            if asked["entrypoint"] == "refused":
                return 500, "no such runtime_env plugin"
            self.jobs[submission_id] = FakeJob(asked["entrypoint"], asked["runtime_env"], asked=asked)
            return 200, {"submission_id": submission_id, "job_id": submission_id}
        _, _, _, submission_id, *what = path.split("/")
        job = self.jobs.get(submission_id)
        if job is None:
            return 404, f"Job {submission_id} does not exist"
        if what == ["stop"]:
            job.stops += 1
            return 200, {"stopped": True}
        if what == ["logs"]:
            return 200, {"logs": job.log}
        if what == ["logs", "tail"]:
            return 500, "the log stream broke off"
        return 200, self._described(submission_id)

    def _described(self, submission_id: str) -> dict[str, Any]:
        job = self.jobs[submission_id]
        described = {"type": "SUBMISSION", "status": job.status, "entrypoint": job.entrypoint, "message": "so it is"}
        return described | {"submission_id": submission_id, "job_id": job.ray_job}

    def _listed(self, what: str) -> list[dict[str, Any]]:
        name, _, query = what.partition("?")
        asked = parse_qs(query)
        (limit,), (detail,) = asked["limit"], asked["detail"]
        assert (limit, detail) == ("10000", "1")
        states = asked.get("filter_values", [])
        return [row for row in self.rows.get(name, []) if not states or row["state"] in states]

    def _reply(self, request: BaseHTTPRequestHandler, code: int, answer: Any) -> None:
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
