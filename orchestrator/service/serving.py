"""`thresher serve`: the application, the controller in a thread beside it, and an orderly end for both."""

import logging
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import uvicorn

from jobs.errors import SpecError
from orchestrator.service.app import create_app
from orchestrator.service.here import ClusterNodes
from orchestrator.service.logs import AttemptLogs, RayLog
from orchestrator.service.settings import Listen, ServiceSettings
from orchestrator.store import Store

logger = logging.getLogger(__name__)

GRACE_S = 10
"""For requests that are being answered when the service is told to end."""
_KEEP_ALIVE_S = 30
_CONTROLLER_END_S = 30.0
_BACKLOG = 2048


class Loop(Protocol):
    """The controller, as far as the service starts and ends it."""

    def run(self, stop: threading.Event) -> None: ...

    def wake(self) -> None: ...

    def lease_age_s(self) -> float | None: ...


def store_url(runs: Path, given: str | None) -> str:
    """The database's address: SQLite beside the runs, unless another one is named."""
    return given or f"sqlite:///{runs / 'thresher.db'}"


def serve(
    listen: Listen,
    settings: ServiceSettings,
    store: Store,
    *,
    ray: RayLog | None,
    cluster: ClusterNodes | None,
    controller: Loop,
    on_start: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or SIGINT; then answers what was asked, ends the controller, and returns.

    Jobs go on without it. Raises SpecError for an address that cannot be listened on.

    Args:
        on_start: is told the service's URL once it can be reached.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_guarded, args=(controller, stop), name="controller", daemon=True)
    with ExitStack() as stack:
        bound = stack.enter_context(_bind(listen))
        logs = AttemptLogs(settings.runs / ".service" / "logs", ray)
        app = create_app(store, settings, controller.wake, cluster, logs, thread.is_alive, controller.lease_age_s)
        address = Listen(listen.host, bound.getsockname()[1], listen.tls_cert, listen.tls_key, listen.insecure)
        server = _Server(_config(app, listen), app.state.service.stopping, lambda: on_start(address.url))
        # uvicorn raises a signal again once it has ended; what is to be done then is done below.
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        thread.start()
        try:
            server.run(sockets=[bound])
        finally:
            stop.set()
            controller.wake()
            thread.join(_CONTROLLER_END_S)
            if thread.is_alive():
                logger.warning("the controller is still at work after %g s and is left alone", _CONTROLLER_END_S)


def _guarded(controller: Loop, stop: threading.Event) -> None:
    try:
        controller.run(stop)
    except BaseException:
        # The service goes on answering, and /readyz says that nothing is being started.
        logger.exception("the controller has died; restart the service")
        raise


class _Server(uvicorn.Server):
    """Tells streams to end as soon as the service is to end, and others once it can be reached."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)


def _config(app: Any, listen: Listen) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_certfile=listen.tls_cert,
        ssl_keyfile=listen.tls_key,
        log_config=None,
        access_log=False,  # it would log queries; the application has one of its own
        server_header=False,
        proxy_headers=False,  # anybody can write them
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def _bind(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        return socket.create_server((listen.host, listen.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SpecError.at(
            "--port", f"cannot listen there: {error.strerror or error}", f"{listen.host}:{listen.port}"
        ) from error
