"""What happens to every request before and after it is understood: bodies are bounded, answers carry safe headers."""

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.client.calls import API
from orchestrator.service.answers import Refusal, answer_of
from orchestrator.service.settings import Limits

logger = logging.getLogger("orchestrator.service.access")

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
_TLS_HEADERS = ((b"strict-transport-security", b"max-age=31536000"),)
STREAMED = (f"{API}/code/",)
"""Paths whose bodies are read by whoever answers, with a limit of their own."""


class SafeHeaders:
    """Every answer forbids to be framed, sniffed, cached or run as a page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        extra = _HEADERS + (_TLS_HEADERS if scope.get("scheme") == "https" else ())

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                there = {name.lower() for name, _ in headers}
                message = {**message, "headers": headers + [each for each in extra if each[0] not in there]}
            await send(message)

        await self._app(scope, receive, with_headers)


class BoundedBodies:
    """Reads a body whole before anybody looks at it, and refuses one that is too large (413) or too slow (408)."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive, self._limits.spec_bytes, self._limits.body_s)
        except Refusal as refusal:
            await answer_of(refusal)(scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()  # the end of the connection, for which streams wait
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


async def read_body(scope: Scope, receive: Receive, most: int, timeout_s: float) -> bytes | None:
    """The body; None for a caller that went away. Raises Refusal."""
    chunks: list[bytes] = []

    def keep(chunk: bytes) -> None:
        chunks.append(chunk)

    return b"".join(chunks) if await each_chunk(scope, receive, most, timeout_s, keep) else None


async def each_chunk(
    scope: Scope, receive: Receive, most: int, timeout_s: float, take: Callable[[bytes], object]
) -> bool:
    """Gives the body's pieces to `take` as they arrive; False for a caller that went away. Raises Refusal."""
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                size += len(message.get("body", b""))
                if size > most:
                    raise too_large(most)
                take(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {timeout_s:g} s", headers={"Connection": "close"}) from None


def too_large(most: int) -> Refusal:
    # The rest of the body is not read: the connection cannot be used for another request.
    return Refusal(413, "the body is too large", allowed=f"{most} bytes", headers={"Connection": "close"})


class AccessLog:
    """A line for each request: method, path, status, time. Neither headers nor the query: no token is ever in it."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.monotonic() - started
            route = scope.get("route")
            template = getattr(route, "path", None) or "unknown"
            self._observe(scope["method"], template, status, seconds)
            logger.info("%s %s %d %.1f ms", scope["method"], ascii(scope["path"])[1:-1], status, 1000 * seconds)
