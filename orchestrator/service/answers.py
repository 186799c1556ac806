"""From an error to an answer: {error, message, problems: [{path, message, value, allowed, nearest}], state}.

SpecError            422   as the command line says it
NotFound             404   also for what belongs to another project
Conflict             409   with the state
Refusal              what it says: 400, 401, 403, 404, 408, 413, 415, 416, 429
StoreUnavailable, ClusterUnreachable    503, Retry-After
anything else        500   and nothing of it is told
"""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobs.errors import ClusterUnreachable, Problem, SpecError, ThresherError
from orchestrator.store.errors import Conflict, NotFound, StoreUnavailable

logger = logging.getLogger(__name__)

_SHOWN = 500
_AGAIN_S = 1


class Refusal(ThresherError):
    """An answer that refuses a request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        path: str = "",
        allowed: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = Problem(path, message, allowed=allowed)
        self.headers = headers or {}


class JsonAnswer(Response):
    """JSON in ASCII, so that whatever text a caller has sent can be said back to it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def not_found(what: str) -> Refusal:
    """The same for what is not there and for what belongs to others."""
    return Refusal(404, f"no such {what}")


def install(app: FastAPI) -> None:
    """Makes the app answer with these."""
    for kind, handler in (
        (ThresherError, _of_ours),
        (RequestValidationError, _of_parameters),
        (HTTPException, _of_framework),
        (Exception, _of_a_fault),
    ):
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]


def answer_of(error: ThresherError) -> JsonAnswer:
    """The answer for an error that was raised on purpose."""
    name = type(error).__name__
    match error:
        case Refusal():
            return _answer(error.status, name, [error.problem], error.headers)
        case SpecError():
            return _answer(422, name, error.problems)
        case NotFound():
            return _answer(404, name, [Problem("", str(error))])
        case Conflict():
            return _answer(409, name, [Problem("", str(error))], state=error.state)
        case StoreUnavailable() | ClusterUnreachable():
            return _answer(503, name, [Problem("", str(error))], {"Retry-After": str(_AGAIN_S)})
    logger.error("a request failed", exc_info=error)
    return _answer(500, "ServiceError", [Problem("", "the service failed; its log says why")])


def _of_ours(request: Request, error: ThresherError) -> JsonAnswer:
    return answer_of(error)


def _of_parameters(request: Request, error: RequestValidationError) -> JsonAnswer:
    problems = [
        Problem(".".join(str(part) for part in each["loc"] if part != "body"), each["msg"], _shown(each.get("input")))
        for each in error.errors()
    ]
    return _answer(422, "SpecError", problems)


def _of_framework(request: Request, error: HTTPException) -> JsonAnswer:
    return _answer(error.status_code, "Refusal", [Problem("", str(error.detail))], dict(error.headers or {}))


def _of_a_fault(request: Request, error: Exception) -> JsonAnswer:
    # What it was is in the log, written by the server; it may hold what is not the caller's to know.
    return _answer(500, "ServiceError", [Problem("", "the service failed; its log says why")])


def _answer(
    status: int, name: str, problems: list[Problem], headers: dict[str, str] | None = None, state: str | None = None
) -> JsonAnswer:
    document: dict[str, Any] = {
        "error": name,
        "message": "\n".join(str(problem) for problem in problems),
        "problems": [
            {
                "path": problem.path,
                "message": problem.message,
                "value": _shown(problem.value),
                "allowed": problem.allowed,
                "nearest": problem.nearest,
            }
            for problem in problems
        ],
    }
    if state is not None:
        document["state"] = str(state)
    return JsonAnswer(document, status, headers)


def _shown(value: Any) -> Any:
    """A value as JSON can hold it, and no longer than anybody reads."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | str) and len(str(value)) <= _SHOWN:
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
