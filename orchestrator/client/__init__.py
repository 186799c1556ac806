"""The service's clients: `Client`, and `AsyncClient` for an event loop; both answer with typed records."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.client.async_client import AsyncClient
    from orchestrator.client.errors import ServiceBroken, ServiceRefused
    from orchestrator.client.retry import Retries
    from orchestrator.client.sync_client import Client

__all__ = ["AsyncClient", "Client", "Retries", "ServiceBroken", "ServiceRefused"]

_WHERE = {
    "AsyncClient": "async_client",
    "Client": "sync_client",
    "Retries": "retry",
    "ServiceBroken": "errors",
    "ServiceRefused": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"orchestrator.client.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
