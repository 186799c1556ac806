"""From an answer of the service to an error of ours.

SpecError
└── ServiceRefused       the service said no: 4xx, with the problems that it named   exit code 2
ThresherError
└── ServiceBroken        the service answered 500, or something that is no answer    exit code 1
ClusterUnreachable       nobody answered, or a 502, 503, 504, after all repetitions  exit code 3
"""

from typing import Any

import httpx

from jobs.errors import ClusterUnreachable, Problem, SpecError, ThresherError

AWAY = (502, 503, 504)


class ServiceRefused(SpecError):
    """The service said no, and why.

    Attributes:
        status: of HTTP.
        state: of the job, where a transition was in conflict with it.
    """

    def __init__(self, problems: list[Problem], status: int = 0, state: str | None = None) -> None:
        super().__init__(problems)
        self.status = status
        self.state = state

    def __reduce__(self) -> Any:
        return type(self), (self.problems, self.status, self.state)


class ServiceBroken(ThresherError):
    """What answered is no Thresher service, or one with a fault."""


def error_of(response: httpx.Response, url: str) -> ThresherError:
    """The error that an answer of 400 and above stands for; its body must have been read."""
    document = _document(response)
    if response.status_code in AWAY:
        return ClusterUnreachable(f"the service at {url} does not answer: {_words(document, response)}")
    if 400 <= response.status_code < 500 and isinstance(document.get("problems"), list):
        problems = [
            Problem(
                path=str(each.get("path", "")),
                message=str(each.get("message", "")),
                value=each.get("value"),
                allowed=each.get("allowed"),
                nearest=each.get("nearest"),
            )
            for each in document["problems"]
            if isinstance(each, dict)
        ]
        return ServiceRefused(problems, response.status_code, document.get("state"))
    if 400 <= response.status_code < 500:
        return ServiceRefused([Problem("", f"{url}: {_words(document, response)}")], response.status_code)
    return ServiceBroken(f"the service at {url} failed: {_words(document, response)}")


def unreachable(url: str, error: Exception, tries: int) -> ClusterUnreachable:
    """The error for a service that did not answer, however often it was asked."""
    reason = str(error) or type(error).__name__
    return ClusterUnreachable(f"no service answers at {url} ({reason}; asked {tries} times); is `thresher serve` up?")


def no_answer(url: str, error: ValueError) -> ServiceBroken:
    """The error for an answer that cannot be read."""
    return ServiceBroken(f"what answers at {url} is no Thresher service, or a newer one: {str(error)[:200]}")


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _words(document: dict[str, Any], response: httpx.Response) -> str:
    return str(document.get("message") or f"HTTP {response.status_code} {response.reason_phrase}")
